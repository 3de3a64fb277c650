"""Tensors of which every process holds a shard: DTensors, known by what they can do.

``torch.distributed.tensor`` takes most of a second to import, which a process on its own need not wait for.
"""

from __future__ import annotations

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a shard of a tensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; a whole one as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, every one of which must ask; a whole one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
