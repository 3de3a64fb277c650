"""The frozen teacher: a live module as a source, and the guard that proves it stayed as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn

from kdengine.api import ConfigurationError, TeacherSource
from kdengine.api.batch import Batch
from kdengine.api.processes import join
from kdengine.api.teacher import FrozenModel
from kdengine.engine.batching import call_model, cast, device_of, move
from kdengine.engine.compiled import compile_in_place
from kdengine.engine.shards import local
from kdengine.host import Host

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class LiveTeacher(FrozenModel):
    """A module that runs beside the student, frozen.

    Args:
        module: the teacher.
        device: where it runs; None for the student's device.
        dtype: floating type of its parameters and inputs; None leaves them.
        transform: applied to the inputs before the teacher sees them (another normalisation or size).
        compile: whether to run it under ``torch.compile``.
        shard: whether several processes keep shards of it, gathered block by block as it runs, instead of copies.
            ``"layers"`` gathers layer by layer: less memory at the peak, more messages, and no module may read the
            parameters of another.
        mesh: which processes share one copy that is sharded, for instance those of one machine; all by default.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        transform: Callable[[Any], Any] | None = None,
        compile: bool = False,
        shard: bool | Literal["layers"] = False,
        mesh: DeviceMesh | None = None,
    ) -> None:
        if shard and device is not None:
            raise ConfigurationError("a sharded teacher runs on the device of its process: leave device out")
        super().__init__(module)
        self.device = None if device is None else torch.device(device)
        self.dtype = dtype
        self.transform = transform
        self.compile = compile
        self.shard = shard
        self.mesh = mesh

    def place(self, device: torch.device) -> None:
        """Freeze the module and move it."""
        freeze(self.module)
        self.module.to(device=self.device or device, dtype=self.dtype)
        if self.shard and join().world > 1:
            from kdengine.engine import fsdp

            fsdp.shard(self.module, mesh=self.mesh, frozen=True, by_layer=self.shard == "layers")
        if self.compile:
            compile_in_place(self.module)

    def forward(self, batch: Batch) -> Any:
        """Run the module; its output comes back to the batch's device when it runs on another."""
        inputs = batch.inputs if self.transform is None else self.transform(batch.inputs)
        if self.device is None and self.dtype is None:
            return call_model(self.module, inputs)
        home = device_of(inputs)
        output = call_model(self.module, cast(move(inputs, self.device or home), self.dtype))
        return move(output, home)


def freeze(module: nn.Module) -> None:
    """Evaluation mode and no gradient, for scripted modules too.

    Raises:
        ConfigurationError: the module has no modes.
    """
    try:
        module.eval()
    except NotImplementedError as error:
        raise ConfigurationError(
            f"the teacher, a {type(module).__name__}, cannot be put into evaluation mode ({error}); give the module "
            "that it was exported from, or torch.export.unflatten(program) of one exported in evaluation mode"
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)


TeacherLike: TypeAlias = nn.Module | TeacherSource | Sequence[nn.Module | TeacherSource]


def as_source(teacher: TeacherLike | None, host: Host) -> TeacherSource | None:
    """A module becomes a :class:`LiveTeacher`, several teachers an ensemble; a source and None stay as they are."""
    if teacher is None or isinstance(teacher, TeacherSource):
        return teacher
    if isinstance(teacher, list | tuple | nn.ModuleList):
        ensemble: TeacherSource = host.component("teachers", "builtin:ensemble").load()(list(teacher))
        return ensemble
    if isinstance(teacher, nn.Module):
        return LiveTeacher(teacher)
    raise ConfigurationError(
        f"teacher must be an nn.Module, a kdengine.TeacherSource, a list of these or None, got {type(teacher).__name__}"
    )


class SourceModel(nn.Module):
    """What a source says, as a model: for whatever measures or compares models.

    Its modules stay where the source has placed them.

    Args:
        source: placed on its device.
    """

    def __init__(self, source: TeacherSource) -> None:
        super().__init__()
        self.source = source
        self.models = nn.ModuleList(source.modules())

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The teacher's output; it sees no labels."""
        given: Any = named or (inputs[0] if len(inputs) == 1 else inputs)
        return self.source.forward(Batch(given))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return self


class FrozenGuard:
    """Checks that frozen modules stay frozen: cheaply at each step, to the bit over a whole fit.

    Args:
        roots: the teacher's modules; none for a cache or an evolving source.
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self.roots = list(roots)
        self._modules = [module for root in self.roots for module in root.modules()]
        self._before = state_hash(self.roots)

    def check(self) -> None:
        """Raise when a teacher module has been put into training mode."""
        for module in self._modules:
            if module.training:
                raise ConfigurationError(
                    f"the frozen teacher's {type(module).__name__} was put into training mode during the fit; "
                    "a teacher that trains must be a TeacherSource with evolving = True"
                )

    def confirm(self) -> None:
        """Raise when the teacher's parameters or buffers are not what they were at the start."""
        if any(p.requires_grad for root in self.roots for p in root.parameters()):
            raise ConfigurationError("a parameter of the frozen teacher was set to require a gradient during the fit")
        if state_hash(self.roots) != self._before:
            raise ConfigurationError(
                "the frozen teacher's parameters or buffers changed during the fit; something else writes to them "
                "(a shared module, a hook, an optimizer that holds its parameters)"
            )


def refuse_shared(roots: Iterable[nn.Module], student: nn.Module) -> None:
    """Raise when a teacher's modules share a parameter with the student."""
    shared = {id(p) for p in student.parameters()} & {id(p) for root in roots for p in root.parameters()}
    if shared:
        raise ConfigurationError(
            f"student and teacher share {len(shared)} parameter tensors: a teacher cannot be part of the student; give "
            "the teacher a copy (copy.deepcopy)"
        )


def state_hash(modules: Iterable[nn.Module]) -> int:
    """A 64-bit hash of every parameter and buffer, computed where they live and sensitive to order.

    Each tensor's bits, read as integers ``b_i``, give ``sum_i b_i * (2 i + 1)`` modulo 2**64; tensors are folded
    in order, each step multiplying by an odd constant.
    """
    folded = 0
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            folded = (folded * _ODD + _tensor_hash(tensor) + 1) % 2**64
    return folded


_ODD = 0x9E3779B97F4A7C15
_CHUNK = 1 << 22
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _tensor_hash(tensor: Tensor) -> int:
    flat = local(tensor.detach()).contiguous().view(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).view(-1)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        bits = flat[start : start + _CHUNK].view(_INTEGERS[flat.element_size()]).to(torch.int64)
        position = torch.arange(start, start + bits.numel(), device=bits.device)
        total += (bits * (2 * position + 1)).sum()
    return int(total) % 2**64
