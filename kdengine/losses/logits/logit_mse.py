"""Squared error between logits."""

from __future__ import annotations

from torch import Tensor

from kdengine.api import Batch, Loss
from kdengine.api.loss import wide


class LogitMSE(Loss):
    """Logits matched directly: ``1/V sum_v (s_v - t_v)^2`` per item.

    Ba and Caruana 2014, equation 1, with the mean over classes in place of half the sum.

    References:
        Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, equation 1; arXiv:1312.6184

    Args:
        center: whether to subtract each row's mean first, so that a shift common to all classes costs nothing.

    Example:
        >>> LogitMSE().needs.logits
        True
    """

    def __init__(self, center: bool = False) -> None:
        super().__init__()
        self.center = center

    def per_item(self, batch: Batch) -> Tensor:
        """Mean squared difference of each item's logits, ``(B, ...)``, in float32 or wider."""
        student, teacher = (wide(output.logits) for output in (batch.student, batch.teacher))
        if self.center:
            student = student - student.mean(dim=-1, keepdim=True)
            teacher = teacher - teacher.mean(dim=-1, keepdim=True)
        return (student - teacher).square().mean(dim=-1)
