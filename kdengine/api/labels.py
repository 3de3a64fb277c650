"""Which items of a batch have a label."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The class id that marks what has no label, unless a loss or metric names another."""

FEW = 512
"""Up to so many class ids on the host are read as a list, which is cheaper than any operation on a tensor."""


def labelled(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor | None:
    """Mark what is labelled: class ids other than ``ignore_index``, probability rows that are not all zero.

    Args:
        labels: class ids ``(B, ...)``, or probabilities ``(B, ..., V)``.
        ignore_index: class id of what has no label.

    Returns:
        a bool mask ``(B, ...)``, or None where all of a short batch's items are labelled.
    """
    if labels.is_floating_point():
        return labels.any(dim=-1) if labels.ndim > 1 else None  # one number per item is no probability
    few = labels.ndim == 1 and labels.device.type == "cpu" and labels.numel() <= FEW
    if few and ignore_index not in labels.tolist():
        return None
    return labels != ignore_index


def labelled_items(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor | None:
    """Mark the items with any class id other than ``ignore_index``, ``(B,)``; None where every item counts.

    Numbers that are no class ids say nothing of what is missing: a zero may be a target.

    >>> labelled_items(torch.tensor([[1, -100], [-100, -100]]))
    tensor([ True, False])
    """
    if labels.is_floating_point() or labels.dtype is torch.bool or labels.ndim == 0:
        return None
    mask = labelled(labels, ignore_index)
    return mask if mask is None or mask.ndim == 1 else mask.flatten(1).any(dim=-1)
