"""Calibration."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Metric
from kdengine.api.loss import Classes
from kdengine.metrics.items import IGNORE_INDEX, labelled_items


class CalibrationError(Metric):
    """Expected calibration error: ``sum_m |B_m| / n * |accuracy(B_m) - confidence(B_m)|``, lower is better.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3. ``B_m`` holds the labelled
    items whose confidence (the highest probability, at temperature 1) lies in ``((m - 1) / bins, m / bins]``.

    Args:
        bins: number of equally wide bins.
        ignore_index: class id of an unlabelled item.
    """

    higher_is_better: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    classes: ClassVar[Classes | None] = "exclusive"

    def __init__(self, bins: int = 15, ignore_index: int = IGNORE_INDEX) -> None:
        if bins < 1:
            raise ConfigurationError(f"expected at least 1 bin, got {bins}")
        self.bins = bins
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.counts: Tensor | None = None
        self.gaps: Tensor | None = None

    def update(self, batch: Batch) -> None:
        """Add one batch to the bins."""
        items = labelled_items(batch, self.ignore_index)
        if items is None:
            return
        logits_NV, ids_N, counts_N = items  # noqa: N806
        confidence, said = logits_NV.float().softmax(dim=-1).max(dim=-1)
        position = (confidence * self.bins).ceil().long().sub(1).clamp(0, self.bins - 1)
        # a comparison instead of index_add, whose order of addition is not fixed on CUDA
        members = (position.unsqueeze(-1) == torch.arange(self.bins, device=position.device)) & counts_N.unsqueeze(-1)
        gap = (said == ids_N).to(confidence.dtype) - confidence
        if gap.device.type != "mps":  # which has no float64
            gap = gap.double()
        counts, gaps = members.sum(dim=0), torch.where(members, gap.unsqueeze(-1), 0.0).sum(dim=0)  # (bins,)
        self.counts = counts if self.counts is None else self.counts + counts
        self.gaps = gaps if self.gaps is None else self.gaps + gaps

    def compute(self) -> float | None:
        """The error, from 0 to 1; None when no item is labelled."""
        if self.counts is None or self.gaps is None:
            return None
        # |B| / n * |accuracy - confidence| is |sum over B of (hit - confidence)| / n
        total, items = torch.stack([self.gaps.abs().sum(), self.counts.sum().to(self.gaps.dtype)]).tolist()
        return total / items if items else None
