"""Squared error between logits."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss
from kdengine.api.loss import wide


class LogitMSE(Loss):
    """Logits matched directly: ``1/V sum_v (s_v - t_v)^2`` per item.

    Ba and Caruana 2014, equation 1, with the mean over classes in place of half the sum. Classes that both mask (-inf)
    are left out, and V counts the others.

    References:
        Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, equation 1; arXiv:1312.6184

    Args:
        center: whether to subtract each row's mean first, so that a shift common to all classes costs nothing.

    Example:
        >>> LogitMSE().needs.logits
        True
    """

    at_equality = "zero"

    def __init__(self, center: bool = False) -> None:
        super().__init__()
        self.center = center

    def per_item(self, batch: Batch) -> Tensor:
        """Mean squared difference of each item's logits, ``(B, ...)``, in float32 or wider."""
        student, teacher = (wide(output.logits) for output in (batch.student, batch.teacher))
        if student.shape != teacher.shape:
            raise ConfigurationError(
                f"the loss logit_mse needs logits of one shape, but the student gave {tuple(student.shape)} and the "
                f"teacher {tuple(teacher.shape)}; Engine(output=fn) can reshape them"
            )
        absent = (student == -torch.inf) & (teacher == -torch.inf)
        classes = (~absent).sum(dim=-1).clamp(min=1)
        error = torch.where(absent, 0.0, student - teacher)
        if self.center:
            error = torch.where(absent, 0.0, error - error.sum(dim=-1, keepdim=True) / classes.unsqueeze(-1))
        return error.square().sum(dim=-1) / classes
