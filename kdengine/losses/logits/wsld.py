"""Weighted soft labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kdengine.api import Batch, Loss, Needs, Scalar
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.entropy import entropy
from kdengine.losses.logits.labels import class_ids, labelled
from kdengine.losses.logits.standardize import logits_of
from kdengine.losses.logits.targets import own_classes, split
from kdengine.ops import kd_loss


class WSLD(Loss):
    """Soft labels that weigh less where the student already fits the label better than its teacher.

    ``(1 - exp(-L_s / L_t)) * T^2 * -sum_v p_v log q_v`` per item (Zhou et al. 2021, "Rethinking Soft Labels", the
    loss of weighted soft labels): p = softmax(t / T), q = softmax(s / T), and L_s, L_t are the cross-entropies of
    student and teacher with the label at temperature 1. The factor is 0 where L_s is, and 1 where only L_t is.

    The published loss is the cross-entropy with the labels plus alpha times this one: beside a ``ce`` of weight 1,
    alpha is the weight of this loss, 2.5 in the code for ImageNet, where T is 2. The code adds 1e-7 to L_t; here the
    ratio is exact.

    The factor is a constant for the gradient, as in the published code. So the gradient is not that of the value: a
    student that comes nearer to its teacher and farther from the label may have a larger value than before.

    References:
        Zhou et al., "Rethinking Soft Labels for Knowledge Distillation", ICLR 2021, section 4; arXiv:2102.00650

    Args:
        temperature: T > 0.
        ignore_index: label of an unlabelled item, which is left out. Probabilities as labels are refused.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`),
            for all of it, L_s and L_t included.

    Example:
        >>> WSLD().needs.labels
        True
    """

    needs = Needs(labels=True, classes="exclusive")
    detaches = True

    def __init__(self, temperature: Scalar = 2.0, ignore_index: int = -100, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize
        check_number("wsld", "temperature", temperature, above=0.0)
        self.temperature: float = temperature
        self.ignore_index = ignore_index

    def valid(self, batch: Batch) -> Tensor | None:
        """Labelled items."""
        return labelled(class_ids(batch, "wsld"), self.ignore_index)

    def per_item(self, batch: Batch) -> Tensor:
        """The weighted cross-entropy of each item, ``(B, ...)``, in float32 or wider."""
        own = own_classes(batch, "wsld", self.ignore_index)
        student, teacher = (wide(logits) for logits in logits_of(batch, self.standardize))
        divergence = kd_loss(student, teacher, temperature=self.temperature, reduction="none")
        soft = divergence + self.temperature**2 * entropy(teacher, self.temperature)
        weight = soft_label_weight(student, teacher, own)
        return torch.where(weight > 0, weight * soft, 0.0)


def soft_label_weight(student: Tensor, teacher: Tensor, own: Tensor) -> Tensor:
    """``1 - exp(-L_s / L_t)``, ``(B, ...)``, without a gradient.

    Args:
        student: logits, ``(B, ..., V)``.
        teacher: logits, ``(B, ..., V)``.
        own: class ids, ``(B, ...)``.
    """
    with torch.no_grad():
        of_student, of_teacher = (_cross_entropy(logits, own) for logits in (student, teacher))
        ratio = of_student / of_teacher.clamp(min=torch.finfo(of_teacher.dtype).tiny)
        ratio = torch.where(of_student.isinf() & of_teacher.isinf(), 1.0, ratio)
        return -torch.expm1(-ratio)


def _cross_entropy(logits: Tensor, own: Tensor) -> Tensor:
    """``-log softmax(z)_y`` as softplus(log sum exp of the others - z_y), which keeps its digits near 0."""
    pair = split(logits, own).binary(1.0)
    return F.softplus(pair[..., 1] - pair[..., 0], threshold=80.0)
