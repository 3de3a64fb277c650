"""FSDP2: sharding a module block by block, and training a student whose parameters are shards.

Imported only where something is sharded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor import empty as distributed_empty

from kdengine.engine.shards import is_sharded, local, whole
from kdengine.engine.strategies import Alone

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the parameters of those inside them."""


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a model that are gathered one at a time: the children of its containers that have parameters.

    Containers inside containers are opened; what a block holds is not.

    >>> encoder = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))
    >>> [type(block).__name__ for block in blocks(nn.ModuleDict({"encoder": encoder}))]
    ['Linear', 'Linear']
    """
    for child in module.children():
        if isinstance(child, _CONTAINERS) or not isinstance(module, _CONTAINERS):
            yield from blocks(child)
        elif next(child.parameters(), None) is not None:
            yield child


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a model that have parameters of their own, those inside before those around them.

    >>> [type(layer).__name__ for layer in layers(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.PReLU())))]
    ['Linear', 'PReLU']
    """
    for child in module.children():
        if not isinstance(child, _WHOLE):
            yield from layers(child)
        if isinstance(child, _WHOLE) or next(child.parameters(recurse=False), None) is not None:
            yield child


def shard(module: nn.Module, *, mesh: DeviceMesh | None = None, frozen: bool = False, by_layer: bool = False) -> None:
    """Shard a module in place: block by block or layer by layer, then what is left.

    FSDP2 holds a gathered part three times for a moment: what was gathered, its copy in the parameters' shapes,
    what was gathered before. So blocks take a peak of three blocks beside the shards, and layers one of three layers.

    Args:
        module: every process holds the same parameters.
        mesh: the processes that hold shards together (those of one machine, say); all by default.
        frozen: whether it never runs backward, so that what is gathered can be let go after every forward.
        by_layer: whether each layer is gathered by itself. No module may then read another one's parameters.
    """
    if isinstance(module, FSDPModule):
        return
    for part in list(layers(module) if by_layer else blocks(module)):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True if frozen else None)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # else a scaled sum, which gloo does not have


class Sharded(Alone):
    """PyTorch's FSDP2 over the student; the losses' own parameters, which are few, are copied to every process.

    Args:
        trained: what trains and is sharded by :func:`shard`: the student, and a teacher that learns.
        losses: all loss modules.
    """

    name = "fsdp"
    shards = True

    def __init__(self, trained: Sequence[nn.Module], losses: nn.Module) -> None:
        self._trained = [cast("FSDPModule", module) for module in trained]
        self._mesh = next(p.device_mesh for p in trained[0].parameters() if isinstance(p, DTensor))
        self._own = [parameter for parameter in losses.parameters() if parameter.requires_grad]

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Gradients stay whole and unsummed."""
        self._sync(False)
        try:
            yield
        finally:
            self._sync(True)

    def _sync(self, wanted: bool) -> None:
        for module in self._trained:
            module.set_requires_gradient_sync(wanted)

    def complete(self) -> None:
        """Sum the gradients of the losses' own parameters; one that got none counts as zero."""
        for parameter in self._own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)

    def reduce_found(self, found: Tensor) -> None:
        """Each process has looked at its own shards."""
        dist.all_reduce(found, op=dist.ReduceOp.MAX)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A sharded tensor, cut along its first dimension as FSDP2 cuts parameters."""
        mesh = self._mesh
        return distributed_empty(tuple(shape), dtype=dtype, device_mesh=mesh, placements=[Shard(0)])

    def like(self, present: Tensor, stored: Tensor) -> Tensor:
        """This process's shard of a tensor that is whole, where the present one is sharded."""
        if not isinstance(present, DTensor) or is_sharded(stored):
            return stored
        mesh = present.device_mesh
        return distribute_tensor(stored.to(mesh.device_type), mesh, present.placements)

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """The norm over shards and whole parameters together."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = total_norm(gradients)
        factor = (limit / (total + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
        return total


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm over shards of all processes and whole tensors, in float32."""
    sharded: list[Tensor] = []
    plain: list[Tensor] = []
    for tensor in tensors:
        (sharded if is_sharded(tensor) else plain).append(tensor)
    squares = [whole(torch.nn.utils.get_total_norm(part)).float().square() for part in (sharded, plain) if part]
    return torch.stack(squares).sum().sqrt()
