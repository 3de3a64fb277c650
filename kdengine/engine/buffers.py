"""Buffers: keep those of before a step, and find the ones that a module's state dict does not hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class BufferSnapshot:
    """Copies of all buffers as they were before a step, to go back to when the step is left out.

    A forward pass in training mode writes running statistics before anybody knows whether the step's loss is finite:
    a step that leaves the weights as they were must leave the buffers too. All are copied at every step, constants as
    well: a tensor's version does not tell whether ``batch_norm`` has written into it.

    Args:
        modules: whose buffers.
        steps: how many steps to go back; 2 where a step's report comes one step late.
    """

    def __init__(self, modules: Iterable[nn.Module], steps: int = 1) -> None:
        self._modules = [module for root in modules for module in root.modules()]
        self._steps = steps
        self._kept: dict[int, Copies] = {}

    def take(self, step: int) -> None:
        """Copy every buffer; call it before the first forward pass of a step."""
        buffers = [b for module in self._modules for b in module._buffers.values() if b is not None]
        oldest = self._kept.pop(next(iter(self._kept))) if len(self._kept) == self._steps else None
        if oldest is None or not oldest.are_of(buffers):
            oldest = Copies(self._modules)
        self._kept[step] = oldest
        if buffers:
            with torch.no_grad():
                torch._foreach_copy_(oldest.copies, buffers)

    @torch.no_grad()
    def restore(self, step: int) -> None:
        """Make every buffer what it was before a step; one that was made in it goes."""
        kept = self._kept.get(step)
        if kept is None:
            return
        for module in self._modules:
            for name in [n for n, b in module._buffers.items() if b is not None and (module, n) not in kept.places]:
                delattr(module, name)
        for (module, name), buffer, copy in zip(kept.places, kept.buffers, kept.copies, strict=True):
            (buffer if buffer.shape == copy.shape else buffer.resize_(copy.shape)).copy_(copy)
            module._buffers[name] = buffer

    @torch.no_grad()
    def restore_where(self, step: int, found: Tensor) -> None:
        """Restore where ``found`` (0-dim, on the device) is above 0, without a look at it from the host."""
        kept, bad = self._kept.get(step), found > 0
        if kept is None:
            return
        present = [module._buffers.get(name) for module, name in kept.places]
        pairs = [(b, c) for b, c in zip(present, kept.copies, strict=True) if b is not None and _alike(c, b)]
        if pairs:
            chosen = [torch.where(bad, copy, buffer) for buffer, copy in pairs]
            torch._foreach_copy_([buffer for buffer, _ in pairs], chosen)


class Copies:
    """Room for a copy of each buffer that modules have.

    Attributes:
        places: module and name of each buffer.
        buffers: the buffers themselves.
        copies: the room, in the same order.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = {(m, name): b for m in modules for name, b in m._buffers.items() if b is not None}
        self.places = dict.fromkeys(found)
        self.buffers = list(found.values())
        self.copies = [torch.empty_like(buffer) for buffer in self.buffers]

    def are_of(self, buffers: list[Tensor]) -> bool:
        """Whether these very tensors are the ones there is room for; an observer of a quantization resizes its own."""
        return len(buffers) == len(self.buffers) and all(
            given is own and given.shape == copy.shape
            for given, own, copy in zip(buffers, self.buffers, self.copies, strict=True)
        )


def _alike(copy: Tensor, buffer: Tensor) -> bool:
    return copy.shape == buffer.shape and copy.dtype == buffer.dtype and copy.device == buffer.device


class HiddenBuffers:
    """The buffers of a module that its state dict does not hold, or that were not there when the fit was assembled.

    A buffer that is registered with ``persistent=False`` is in no state dict, and one that a module makes in its first
    forward pass is unknown to a new process. Either may decide the next step, so a checkpoint holds both.

    Args:
        module: as it is before any training.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._names = {name for name, _ in module.named_buffers()}
        persistent = module.state_dict(keep_vars=True)
        self._first = {name: b.detach().clone() for name, b in module.named_buffers() if name not in persistent}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What was written or made since the beginning: ``hidden`` from state dicts, and ``late`` but persistent."""
        persistent = self.module.state_dict(keep_vars=True)
        found: dict[str, dict[str, Tensor]] = {"hidden": {}, "late": {}}
        for name, buffer in self.module.named_buffers():
            if name not in persistent and not self._is_first(name, buffer):
                found["hidden"][name] = buffer.detach()
            elif name in persistent and name not in self._names:
                found["late"][name] = buffer.detach()
        return found

    def _is_first(self, name: str, buffer: Tensor) -> bool:
        first = self._first.get(name)
        return first is not None and _alike(first, buffer) and torch.equal(first, buffer)

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Set and make the buffers that :meth:`state_dict` gave; before the module's own state dict is loaded."""
        device = next((tensor.device for tensor in self.module.parameters()), torch.device("cpu"))
        for kind, buffers in state.items():
            for name, stored in buffers.items():
                path, _, own = name.rpartition(".")
                owner = self.module.get_submodule(path)
                present = owner._buffers.get(own)
                value = stored.to(device if present is None else present.device)
                if present is not None and present.shape == value.shape and present.dtype == value.dtype:
                    present.copy_(value)
                elif own in owner._buffers:
                    owner._buffers[own] = value.clone()
                else:
                    owner.register_buffer(own, value.clone(), persistent=kind == "late")
