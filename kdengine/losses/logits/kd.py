"""Knowledge distillation with softened targets."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Scalar, Weight
from kdengine.losses.logits.labels import labelled, labels_of
from kdengine.ops import kd_loss


class KD(Loss):
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

    Example:
        >>> KD(temperature=4.0, hard_weight=0.1).terms
        ('soft', 'hard')
    """

    def __init__(
        self,
        temperature: Scalar = 4.0,
        hard_weight: Scalar | None = None,
        divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl",
        beta: Scalar = 0.5,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.hard_weight = hard_weight
        self.divergence = divergence
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        hard = hard_weight is not None
        self.terms = ("soft", "hard") if hard else ("loss",)
        self.needs = Needs(labels=hard)

    def valid(self, batch: Batch) -> Mapping[str, Tensor | None] | None:
        """The hard term counts labelled items; the soft term all."""
        if self.hard_weight is None:
            return None
        return {"soft": None, "hard": labelled(labels_of(batch, "kd"), self.ignore_index)}

    def per_item(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The divergence of each item, ``(B, ...)``, and its weighted cross-entropy when asked for."""
        student, teacher = batch.student.logits, batch.teacher.logits
        soft = kd_loss(
            student,
            teacher,
            temperature=self.temperature,
            divergence=self.divergence,
            beta=self.beta,
            reduction="none",
        )
        if self.hard_weight is None:
            return soft
        hard = kd_loss(
            student,
            teacher,
            labels_of(batch, "kd"),
            soft_weight=0.0,
            hard_weight=self.hard_weight,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction="none",
        )
        return {"soft": soft, "hard": hard}

    def weighted_sum(self, batch: Batch, weights: Mapping[str, Weight]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """One call of the operator for both terms; the gradient is written at its final magnitude."""
        soft_term, factor = self.terms[0], self.hard_weight
        student = batch.student.logits
        total, soft, hard = kd_loss(
            student,
            batch.teacher.logits,
            None if factor is None else labels_of(batch, "kd"),
            temperature=self.temperature,
            soft_weight=_per_row(weights[soft_term], student),
            hard_weight=None if factor is None else _per_row(weights["hard"], student) * factor,
            divergence=self.divergence,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_index,
            reduction="sum",
            return_terms=True,
        )
        return total, {soft_term: soft} if factor is None else {"soft": soft, "hard": hard}


def _per_row(weight: Weight, logits: Tensor) -> Weight:
    """A term's weight for each row of ``(B, ..., V)`` logits; rows beyond the weight's dimensions are averaged."""
    dims = weight.ndim if isinstance(weight, Tensor) and weight.ndim else 1
    if logits.ndim == dims + 1:
        return weight
    rows = logits.shape[:-1]
    share = weight / max(1, prod(rows[dims:]))
    if isinstance(share, Tensor) and share.ndim:
        return share.view(*share.shape, *[1] * (len(rows) - dims)).expand(rows)
    return share
