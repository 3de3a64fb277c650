"""The proof that a frozen teacher stays frozen, and that it is none that trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from kdengine.api import ConfigurationError
from kdengine.api.errors import nearest
from kdengine.engine.shards import local
from kdengine.engine.wrappers import plain_state

SHOWN = 5
"""Most tensors that a message names."""


class FrozenGuard:
    """Checks that frozen modules stay frozen: cheaply at each step, to the bit in the first one and over a whole fit.

    A buffer that is not persistent is no state of a model but what it has computed for itself (masks, rotary
    embeddings), and may change.

    Args:
        roots: the teacher's modules; none for a cache or an evolving source.
        ignored: names or shell patterns of buffers that may change, counters for instance.

    Attributes:
        state: a hash of the state as it was at the start, without what may change.
        tried: whether a whole step has been checked.

    Raises:
        ConfigurationError: a pattern fits no buffer.
    """

    def __init__(self, roots: Iterable[nn.Module], ignored: Sequence[str] = ()) -> None:
        self.roots = list(roots)
        self._modules = [module for root in self.roots for module in root.modules()]
        self._ignored = tuple(ignored)
        self._check_patterns()
        self._before = tensor_hashes(self._parameters() | self._buffers())
        self.state = fold(self._before.values())
        self.tried = False

    def _check_patterns(self) -> None:
        names = [name for name, _ in _named(self.roots, "named_buffers")]
        for pattern in self._ignored:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigurationError(
                    f"ignore_buffers names {pattern!r}, which is no buffer of the teacher; {nearest(pattern, names)}"
                )

    def _parameters(self) -> dict[str, Tensor]:
        return dict(_named(self.roots, "named_parameters"))

    def _buffers(self) -> dict[str, Tensor]:
        """The buffers that must not change."""
        passing = {id(module._buffers[name]) for module in self._modules for name in module._non_persistent_buffers_set}
        return {
            name: buffer
            for name, buffer in _named(self.roots, "named_buffers")
            if id(buffer) not in passing and not any(fnmatchcase(name, pattern) for pattern in self._ignored)
        }

    def check(self) -> None:
        """Raise when a teacher module has been put into training mode."""
        for module in self._modules:
            if module.training:
                raise ConfigurationError(
                    f"the frozen teacher's {type(module).__name__} was put into training mode during the fit; "
                    "a teacher that trains must be a TeacherSource with evolving = True"
                )

    def try_forward(self) -> None:
        """Raise when the teacher's forward passes have changed a buffer; before the first update.

        A buffer that they have made (a mask, a table of positions) is watched from here on.
        """
        present = self._buffers()
        made = {name: buffer for name, buffer in present.items() if name not in self._before}
        self._before.update(tensor_hashes(made))
        self._compare(present, "its own forward pass writes to it")

    def confirm_once(self) -> None:
        """:meth:`confirm`, after the first step alone."""
        if not self.tried:
            self.confirm()
            self.tried = True

    def confirm(self) -> None:
        """Raise when the teacher's parameters or buffers are not what they were at the start."""
        parameters = self._parameters()
        if required := [name for name, parameter in parameters.items() if parameter.requires_grad]:
            raise ConfigurationError(
                f"the frozen teacher's {_listed(required)} was set to require a gradient during the fit"
            )
        self._compare(
            parameters | self._buffers(),
            "something writes to it (a shared module, a hook, an optimizer that holds the teacher's parameters)",
        )

    def _compare(self, present: dict[str, Tensor], cause: str) -> None:
        now = tensor_hashes(present)
        changed = [name for name, found in now.items() if self._before.get(name) != found]
        if not changed:
            return
        buffers = [name for name in changed if not isinstance(present[name], nn.Parameter)]
        way = ""
        if buffers:
            way = (
                f". A buffer that only counts may be exempted: LiveTeacher(teacher, ignore_buffers={buffers[:1]}), "
                "or be registered with persistent=False"
            )
        raise ConfigurationError(
            f"the frozen teacher's {_listed(changed)} changed during the fit: {cause}. A teacher that should change "
            f"must be a TeacherSource with evolving = True{way}"
        )


def _named(roots: Sequence[nn.Module], method: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters or buffers by the path that a user knows; of several modules, behind their numbers."""
    for position, root in enumerate(roots):
        start = f"{position}." if len(roots) > 1 else ""
        for name, tensor in plain_state(dict(getattr(root, method)()), root).items():
            yield start + name, tensor


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def refuse_shared(roots: Iterable[nn.Module], student: nn.Module) -> None:
    """Raise when a teacher's modules share a parameter with the student, or the memory of one that trains."""
    own = list(student.parameters())
    taught = [tensor for root in roots for tensor in (*root.parameters(), *root.buffers())]
    identities, memory = {id(p) for p in own}, {_memory(p) for p in own if p.requires_grad} - {None}
    shared = {id(tensor) for tensor in taught if id(tensor) in identities or _memory(tensor) in memory}
    if shared:
        raise ConfigurationError(
            f"student and teacher share {len(shared)} parameter tensors: a teacher cannot be part of the student; give "
            "the teacher a copy (copy.deepcopy)"
        )


def _memory(tensor: Tensor) -> tuple[torch.device, int] | None:
    """Where a tensor's elements begin; None where that cannot be known."""
    try:
        pointer = local(tensor).data_ptr()
    except (RuntimeError, ValueError):  # a lazy parameter, for instance
        return None
    return (tensor.device, pointer) if pointer else None


@contextmanager
def refusing_student(student: nn.Module) -> Iterator[None]:
    """Raise when something that trains in the student runs in here: a frozen teacher that hides the student, in a list.

    Raises:
        ConfigurationError: it does.
    """
    seen: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: seen.append(name))
        for name, module in student.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)  # which has no such hooks
        and any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if seen:
        raise ConfigurationError(
            f"the frozen teacher runs modules of the student that train ({_listed(list(dict.fromkeys(seen)))}): it "
            "would be taught by itself. Give the teacher a copy (copy.deepcopy), or make it a TeacherSource with "
            "evolving = True"
        )


def state_hash(modules: Iterable[nn.Module]) -> int:
    """A 64-bit hash of every parameter and buffer, computed where they live and sensitive to order.

    Each tensor's bits, read as integers ``b_i``, give ``sum_i b_i * (2 i + 1)`` modulo 2**64; tensors are folded
    in order, each step multiplying by an odd constant.
    """
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return fold(tensor_hashes({str(position): tensor for position, tensor in enumerate(tensors)}).values())


def fold(hashes: Iterable[int]) -> int:
    """One hash of several in their order."""
    folded = 0
    for found in hashes:
        folded = (folded * _ODD + found + 1) % 2**64
    return folded


def tensor_hashes(tensors: dict[str, Tensor]) -> dict[str, int]:
    """The hash of each tensor; a device is waited for once."""
    sums = {name: _tensor_hash(tensor.detach()) for name, tensor in tensors.items()}
    found: dict[str, int] = {}
    for device in {total.device for total in sums.values()}:
        names = [name for name, total in sums.items() if total.device == device]
        values = torch.stack([sums[name] for name in names]).tolist()
        found.update({name: value % 2**64 for name, value in zip(names, values, strict=True)})
    return {name: found[name] for name in tensors}


_ODD = 0x9E3779B97F4A7C15
_CHUNK = 1 << 22
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _tensor_hash(tensor: Tensor) -> Tensor:
    """0-dim int64, on the tensor's device."""
    tensor = local(tensor)
    if parts := _parts(tensor):
        return torch.stack([_tensor_hash(part) * (2 * at + 1) for at, part in enumerate(parts)]).sum()
    flat = tensor.contiguous().view(-1)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        bits = flat[start : start + _CHUNK].view(_INTEGERS[flat.element_size()]).to(torch.int64)
        position = torch.arange(start, start + bits.numel(), device=bits.device)
        total += (bits * (2 * position + 1)).sum()
    return total


def _parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a tensor of another kind consists of; none of a dense one."""
    if tensor.is_complex():
        return [torch.view_as_real(tensor)]
    if tensor.is_sparse:
        whole = tensor.coalesce()
        return [whole.indices(), whole.values()]
    if tensor.is_quantized:
        return [tensor.int_repr()]
    if hasattr(tensor, "__tensor_flatten__"):  # a subclass, such as those of torchao
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return []
