"""Which items of a batch a metric counts, and a running share of them.

Nothing here has a shape that depends on values: what does not count has a False in a mask, so no update waits for
the device.

Shape suffixes: B batch, V classes, N all items (B times any inner dimensions).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Metric
from kdengine.api.metric import IGNORE_INDEX

__all__ = ["IGNORE_INDEX", "Share", "batch_mask", "labelled_items"]


def labelled_items(batch: Batch, ignore_index: int = IGNORE_INDEX) -> tuple[Tensor, Tensor, Tensor] | None:
    """Logits, class ids and whether each item counts.

    Args:
        batch: a batch with the student's output.
        ignore_index: class id of an unlabelled item.

    Returns:
        logits ``(N, V)``, class ids ``(N,)`` int64 and a mask ``(N,)`` bool; None when the batch has no labels.

    Raises:
        ConfigurationError: the labels are neither class ids nor class probabilities for these logits.
    """
    logits, labels = batch.student.logits, batch.labels
    if labels is None:
        return None
    if labels.is_floating_point() and labels.shape == logits.shape:
        ids, counts = labels.argmax(dim=-1), (labels != 0).any(dim=-1)
    elif not labels.is_floating_point() and labels.shape == logits.shape[:-1]:
        ids, counts = labels.long(), labels != ignore_index
    else:
        raise ConfigurationError(
            f"this metric compares logits (B, ..., V) with class ids (B, ...) or probabilities (B, ..., V); "
            f"got logits {tuple(logits.shape)} and labels {tuple(labels.shape)} {labels.dtype}"
        )
    counts = counts & batch_mask(batch, ids)
    return logits.flatten(0, -2), ids.flatten(), counts.flatten()


def batch_mask(batch: Batch, like: Tensor) -> Tensor:
    """The batch's mask ``(B,)`` spread over the inner dimensions of ``like`` ``(B, ...)``; all True without one."""
    if batch.mask is None:
        return torch.ones_like(like, dtype=torch.bool)
    return batch.mask.to(like.device).view(-1, *[1] * (like.ndim - 1)).expand_as(like)


class Share(Metric):
    """Base of metrics that report the share of items with some property; counts are exact integers."""

    higher_is_better: ClassVar[bool] = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.hits: Tensor | None = None
        self.items: Tensor | None = None

    def add(self, hits: Tensor, counts: Tensor) -> None:
        """Take in one batch.

        Args:
            hits: whether each item has the property, ``(N,)`` bool.
            counts: whether each item counts, ``(N,)`` bool.
        """
        hit_count, item_count = (hits & counts).sum(), counts.sum()
        self.hits = hit_count if self.hits is None else self.hits + hit_count
        self.items = item_count if self.items is None else self.items + item_count

    def compute(self) -> float | None:
        """The share, from 0 to 1; None when no item counted."""
        if self.hits is None or self.items is None:
            return None
        hits, items = torch.stack([self.hits, self.items]).tolist()
        return hits / items if items else None
