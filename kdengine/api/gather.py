"""What a loss that remembers items needs among several processes."""

from __future__ import annotations

from torch import Tensor

from kdengine.api.processes import join


def gather(rows: Tensor) -> Tensor:
    """The rows of every process that trains, in the order of their ranks, without a graph; in one process, its own.

    A memory bank that stores what this gives is the same in every process, and the same that one process would have.
    Every process must call it equally often: call it wherever the loss runs, whatever the batch holds.

    Args:
        rows: ``(B, ...)`` of any dtype; processes may differ in B.

    Returns:
        ``(sum of B, ...)``, on the device of ``rows``.

    Example:
        >>> import torch
        >>> gather(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    return join().gather_rows(rows.detach())
