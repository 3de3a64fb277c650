"""Normalised knowledge distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Scalar
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.entropy import entropy
from kdengine.losses.logits.labels import class_ids, labelled
from kdengine.losses.logits.standardize import logits_of
from kdengine.losses.logits.targets import own_classes, split
from kdengine.ops import kd_loss


class NKD(Loss):
    """Soft targets with the other classes' probabilities normalised to the same sum.

    ``-t_y log s_y - gamma T^2 sum_{v != y} N(t)_v log N(s)_v`` per item (Yang et al. 2023, "From Knowledge Distillation
    to Self-Knowledge Distillation", section 3, the equation of L_nkd): y is the item's own class; s_y and t_y are its
    probabilities at temperature 1 (the term ``target``); N is the softmax at temperature T over the other classes (the
    term ``non_target``). Both terms are cross-entropies, so they are not zero where the student gives what its teacher
    gives, and the first one pulls the student's own class up even there.

    N leaves the own class out, as the equation says, and as the published code does by a mask. (The mask of one of its
    versions was true everywhere: the N of that version is over all classes.) The code adds the cross-entropy with the
    labels, of weight 1: ``ce``.

    References:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023, section 3;
        arXiv:2303.13005

    Args:
        temperature: T > 0, of the other classes.
        gamma: weight of the term of the other classes.
        ignore_index: label of an unlabelled item, which is left out. Probabilities as labels are refused.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`),
            for both terms, that of the own class at temperature 1 included.

    Example:
        >>> NKD().terms
        ('target', 'non_target')
    """

    terms = ("target", "non_target")
    needs = Needs(labels=True, classes="exclusive")

    def __init__(
        self, temperature: Scalar = 1.0, gamma: Scalar = 1.5, ignore_index: int = -100, standardize: bool = False
    ) -> None:
        super().__init__()
        self.standardize = standardize
        check_number("nkd", "temperature", temperature, above=0.0)
        self.temperature: float = temperature
        check_number("nkd", "gamma", gamma, least=0.0)
        self.gamma = gamma
        self.ignore_index = ignore_index

    def valid(self, batch: Batch) -> Tensor | None:
        """Labelled items, for both terms."""
        return labelled(class_ids(batch, "nkd"), self.ignore_index)

    def per_item(self, batch: Batch) -> dict[str, Tensor]:
        """Both weighted terms of each item, ``(B, ...)``, in float32 or wider."""
        own = own_classes(batch, "nkd", self.ignore_index)
        student, teacher = (split(wide(logits), own) for logits in logits_of(batch, self.standardize))
        sure = teacher.binary(1.0).softmax(dim=-1)[..., 0]
        log_own = student.binary(1.0).log_softmax(dim=-1)[..., 0]
        divergence = kd_loss(student.others, teacher.others, temperature=self.temperature, reduction="none")
        others = divergence + self.temperature**2 * entropy(teacher.others, self.temperature)
        return {
            "target": -sure * torch.where(sure > 0, log_own, 0.0),
            "non_target": self.gamma * torch.where(student.alone | teacher.alone, 0.0, others),
        }
