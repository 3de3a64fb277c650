"""Accuracy."""

from __future__ import annotations

from typing import ClassVar

from kdengine.api import Batch, ConfigurationError
from kdengine.api.loss import Classes
from kdengine.metrics.items import IGNORE_INDEX, Share, labelled_items


class TopK(Share):
    """Share of labelled items whose class is among the student's ``k`` highest logits.

    Unlabelled items (``ignore_index``, or a row of zero probabilities) and those with a False in ``batch.mask`` are
    left out; of probability labels the highest counts. A row with a NaN logit is a miss. With fewer than ``k`` classes
    every other item is a hit.

    Args:
        k: number of logits to look at.
        ignore_index: class id of an unlabelled item.
    """

    needs_labels: ClassVar[bool] = True
    classes: ClassVar[Classes | None] = "exclusive"

    def __init__(self, k: int, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigurationError(f"expected k to be a whole number of logits to look at, at least 1, got {k!r}")
        self.k = k
        self.ignore_index = ignore_index

    def update(self, batch: Batch) -> None:
        """Count one batch."""
        items = labelled_items(batch, self.ignore_index)
        if items is None:
            return
        logits_NV, ids_N, counts_N = items  # noqa: N806
        best = logits_NV.topk(min(self.k, logits_NV.shape[-1]), dim=-1).indices  # (N, k)
        hits = (best == ids_N.unsqueeze(-1)).any(dim=-1) & ~logits_NV.isnan().any(dim=-1)
        self.add(hits, counts_N)


class Top1(TopK):
    """Accuracy: share of labelled items whose class has the student's highest logit, from 0 to 1.

    Args:
        ignore_index: class id of an unlabelled item.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__(1, ignore_index)


class Top5(TopK):
    """Share of labelled items whose class is among the student's five highest logits, from 0 to 1.

    Args:
        ignore_index: class id of an unlabelled item.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__(5, ignore_index)
