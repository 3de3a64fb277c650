"""Cross-entropy of the student with labels, and its gradient with respect to the student's logits."""

import torch
from torch import Tensor

CrossEntropy = tuple[Tensor, Tensor | None]
"""The value of each row (class dim kept) and the gradient, or None where none is needed."""


def with_class_ids(
    student: Tensor, labels: Tensor, unknown: Tensor | None, smoothing: float, dim: int, need: bool
) -> CrossEntropy:
    """Cross-entropy with class ids, the class dim kept at size 1; rows marked `unknown` give NaN."""
    log_p = student.log_softmax(dim)
    # 1 - p_label as the sum of the others: near p_label = 1 the subtraction would keep only rounding.
    p = student.softmax(dim).scatter(dim, labels, 0)
    others = p.sum(dim, keepdim=True)
    value = torch.where(others < 0.5, -(-others).log1p(), -log_p.gather(dim, labels))
    if smoothing:
        value = (1 - smoothing) * value - smoothing / student.shape[dim] * log_p.sum(dim, keepdim=True)
    if unknown is not None:
        value = value.masked_fill(unknown, torch.nan)
    if not need:
        return value, None
    gradient = p.scatter(dim, labels, smoothing - others)
    if smoothing:
        gradient = gradient - smoothing / student.shape[dim]
    return value, gradient if unknown is None else gradient.masked_fill(unknown, torch.nan)


def with_probabilities(student: Tensor, labels: Tensor, smoothing: float, dim: int, need: bool) -> CrossEntropy:
    """Cross-entropy with one probability per class; a probability of zero contributes zero."""
    log_p = student.log_softmax(dim)
    if smoothing:
        labels = labels * (1 - smoothing) + smoothing / student.shape[dim]
    value = -torch.where(labels == 0, 0, labels * log_p).sum(dim, keepdim=True)
    if not need:
        return value, None
    return value, student.softmax(dim) * labels.sum(dim, keepdim=True) - labels
