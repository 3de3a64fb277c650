"""Decoupled knowledge distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Scalar
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.labels import class_ids, labelled
from kdengine.losses.logits.standardize import logits_of
from kdengine.losses.logits.targets import own_classes, split
from kdengine.ops import kd_loss


class DKD(Loss):
    """KD's divergence taken apart into the item's own class and the others, each with a weight of its own.

    ``T^2 * (alpha KL(b_t || b_s) + beta KL(p_t || p_s))`` per item (Zhao et al. 2022, equation 7): b is the
    distribution over "own class" and "any other" (TCKD, the term ``target``), p the one among the other classes (NCKD,
    the term ``non_target``), both of logits over T. With alpha = 1 and beta = 1 - b_t(own class) it would be ``kd``
    (equation 6). The published weight of both rises linearly over the first 20 epochs: a schedule of ``weight``.

    The own class is left out of p by a mask of -inf, where the published code subtracts 1000.

    References:
        Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, equation 7; arXiv:2203.08679

    Args:
        temperature: T > 0.
        alpha: weight of the term of the own class.
        beta: weight of the term of the other classes.
        ignore_index: label of an unlabelled item, which is left out. Probabilities as labels are refused.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`),
            for both terms, as the published code of Sun et al. 2024 does.

    Example:
        >>> DKD(beta=2.0).terms
        ('target', 'non_target')
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"
    terms = ("target", "non_target")
    needs = Needs(labels=True, classes="exclusive")

    def __init__(
        self,
        temperature: Scalar = 4.0,
        alpha: Scalar = 1.0,
        beta: Scalar = 8.0,
        ignore_index: int = -100,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.standardize = standardize
        check_number("dkd", "temperature", temperature, above=0.0)
        self.temperature: float = temperature
        check_number("dkd", "alpha", alpha, least=0.0)
        self.alpha = alpha
        check_number("dkd", "beta", beta, least=0.0)
        self.beta = beta
        self.ignore_index = ignore_index

    def valid(self, batch: Batch) -> Tensor | None:
        """Labelled items, for both terms."""
        return labelled(class_ids(batch, "dkd"), self.ignore_index)

    def per_item(self, batch: Batch) -> dict[str, Tensor]:
        """Both weighted terms of each item, ``(B, ...)``, in float32 or wider."""
        own = own_classes(batch, "dkd", self.ignore_index)
        student, teacher = (split(wide(logits), own) for logits in logits_of(batch, self.standardize))
        of_target = kd_loss(student.binary(self.temperature), teacher.binary(self.temperature), reduction="none")
        of_others = kd_loss(student.others, teacher.others, temperature=self.temperature, reduction="none")
        return {
            "target": self.alpha * self.temperature**2 * of_target,
            "non_target": self.beta * torch.where(student.alone | teacher.alone, 0.0, of_others),
        }
