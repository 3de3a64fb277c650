"""Logits without the scale and shift of the model that they come from."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api import Batch
from kdengine.api.loss import wide

EPS = 1e-7


def standardize(logits: Tensor) -> Tensor:
    """``(z - mean(z)) / (std(z) + 1e-7)`` over the classes, before the temperature.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation", equations 9 to 11 and algorithm 1; 1e-7 is that
    of the published code. The standard deviation is the population's, ``sqrt(1/V sum (z_v - mean)^2)``, as algorithm 1
    and equation 10 have it. The published code takes the sample's, which equals a temperature higher by
    sqrt(V / (V - 1)): by 0.5% for 100 classes, by 5% for 10.

    Args:
        logits: ``(..., V)``. Masked classes (-inf) stay masked and count neither in the mean nor in the deviation.

    Returns:
        ``(..., V)``, in float32 or wider. A row that varies by no more than rounding gives zeros and has no gradient:
        its direction is not defined.

    Example:
        >>> standardize(torch.tensor([[1.0, 3.0, -float("inf")]]))
        tensor([[-1.0000,  1.0000,    -inf]])
    """
    logits = wide(logits)
    there = logits != -torch.inf
    classes = there.sum(dim=-1, keepdim=True).clamp(min=1)
    kept = torch.where(there, logits, 0.0)
    centred = torch.where(there, kept - kept.sum(dim=-1, keepdim=True) / classes, 0.0)
    square = centred.square().sum(dim=-1, keepdim=True)
    rounding = (8 * torch.finfo(logits.dtype).eps) ** 2 * kept.square().sum(dim=-1, keepdim=True)
    varies = square > rounding
    deviation = (torch.where(varies, square, 1.0) / classes).sqrt()
    standard = torch.where(varies, centred / (deviation + EPS), 0.0)
    return torch.where(there, standard, -torch.inf)


def logits_of(batch: Batch, standardized: bool) -> tuple[Tensor, Tensor]:
    """The logits of student and teacher, as they are or standardised."""
    student, teacher = batch.student.logits, batch.teacher.logits
    return (standardize(student), standardize(teacher)) if standardized else (student, teacher)
