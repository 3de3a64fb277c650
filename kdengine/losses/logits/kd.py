"""Knowledge distillation with softened targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from kdengine.api import Batch, Needs, Scalar, Weight
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.divergence import Divergence, per_row
from kdengine.losses.logits.labels import labelled, labels_of
from kdengine.ops import kd_loss


class KD(Divergence):
    """Temperature-softmax divergence between teacher and student, with an optional hard-label term.

    ``T^2 * KL(softmax(t / T) || softmax(s / T))`` per item (Hinton et al. 2015, section 2: gradients of soft targets
    scale as 1/T^2, so the term is multiplied by T^2), computed by :func:`kdengine.ops.kd_loss`. With
    ``hard_weight`` it is two terms of one fused call: ``soft``, and ``hard = hard_weight * CE(s, labels)``.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2; arXiv:1503.02531

    Args:
        temperature: T > 0.
        hard_weight: factor of the hard-label term; None for none, so that ``kd`` beside ``ce`` never counts
            the labels twice.
        divergence: ``forward_kl``, ``reverse_kl`` or ``jsd``.
        beta: of the generalised Jensen-Shannon divergence.
        label_smoothing: of the hard term.
        ignore_index: label of an unlabelled item, left out of the hard term only.
        standardize: whether to standardise the soft term's logits first
            (:func:`~kdengine.losses.logits.standardize.standardize`); the hard term's stay as they are.

    Example:
        >>> KD(temperature=4.0, hard_weight=0.1).terms
        ('soft', 'hard')
    """

    label = "kd"

    def __init__(
        self,
        temperature: Scalar = 4.0,
        hard_weight: Scalar | None = None,
        divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl",
        beta: Scalar = 0.5,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        standardize: bool = False,
    ) -> None:
        super().__init__(temperature, divergence, beta, standardize)
        hard = hard_weight is not None
        if hard:
            check_number("kd", "hard_weight", hard_weight, least=0.0)
        self.hard_weight = hard_weight
        check_number("kd", "label_smoothing", label_smoothing, least=0.0, most=1.0)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.terms = ("soft", "hard") if hard else ("loss",)
        self.needs = Needs(labels=hard, classes="exclusive")
        if hard:
            self.at_equality = None  # type: ignore[misc]  # the labels pull away from the teacher

    def valid(self, batch: Batch) -> Mapping[str, Tensor | None] | None:
        """The hard term counts labelled items; the soft term all."""
        if self.hard_weight is None:
            return None
        return {"soft": None, "hard": labelled(labels_of(batch, "kd"), self.ignore_index)}

    def per_item(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The divergence of each item, ``(B, ...)``, and its weighted cross-entropy when asked for."""
        soft = self.divergences(batch)
        if self.hard_weight is None:
            return soft
        hard, _ = self._hard(batch, self.hard_weight, "none")
        return {"soft": soft, "hard": hard}

    def weighted_sum(self, batch: Batch, weights: Mapping[str, Weight]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """One call of the operator for both terms; the gradient is written at its final magnitude."""
        if self.hard_weight is None:
            return super().weighted_sum(batch, weights)
        student = batch.student.logits
        hard_weight = per_row(weights["hard"], student) * self.hard_weight
        if self.standardize:  # the terms see different logits
            total, sums = super().weighted_sum(batch, weights)
            own, hard = self._hard(batch, hard_weight, "sum")
            return total + own, {**sums, "hard": hard}
        total, soft, hard = kd_loss(
            student,
            batch.teacher.logits,
            labels_of(batch, "kd"),
            temperature=self.temperature,
            soft_weight=per_row(weights["soft"], student),
            hard_weight=hard_weight,
            divergence=self.divergence,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction="sum",
            return_terms=True,
        )
        return total, {"soft": soft, "hard": hard}

    def _hard(self, batch: Batch, weight: Weight, reduction: Literal["none", "sum"]) -> tuple[Tensor, Tensor]:
        """The hard term alone, and the same detached."""
        hard, _, detached = kd_loss(
            batch.student.logits,
            batch.teacher.logits,
            labels_of(batch, "kd"),
            soft_weight=0.0,
            hard_weight=weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction=reduction,
            return_terms=True,
        )
        return hard, detached
