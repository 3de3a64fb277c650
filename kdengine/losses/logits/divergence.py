"""What the losses of one fused divergence have in common."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Scalar, Weight
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.standardize import logits_of, standardize
from kdengine.ops import kd_loss


class Divergence(Loss):
    """Base of losses that are ``T^2 * D(softmax(t / T), softmax(s / T))`` per item, by :func:`kdengine.ops.kd_loss`.

    Args:
        temperature: T > 0.
        divergence: D: ``forward_kl``, ``reverse_kl`` or ``jsd``.
        beta: of ``jsd``.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`).

    Attributes:
        label: the loss's name, for messages.
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"
    label: ClassVar[str]
    needs = Needs(classes="exclusive")

    def __init__(
        self,
        temperature: Scalar,
        divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl",
        beta: Scalar = 0.5,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        check_number(self.label, "temperature", temperature, above=0.0)
        self.temperature: float = temperature
        self.divergence = divergence
        check_number(self.label, "beta", beta, above=0.0, below=1.0)
        self.beta = beta
        self.standardize = standardize

    def per_item(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The divergence of each item, ``(B, ...)``, in float32 or wider."""
        return self.divergences(batch)

    def divergences(self, batch: Batch) -> Tensor:
        """The same, for a subclass that has more to say of an item."""
        student, teacher = logits_of(batch, self.standardize)
        return kd_loss(
            student,
            teacher,
            temperature=self.temperature,
            divergence=self.divergence,
            beta=self.beta,
            reduction="none",
        )

    def weighted_sum(self, batch: Batch, weights: Mapping[str, Weight]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """One call of the operator, which writes the gradient at its final magnitude."""
        term, student, teacher = self.terms[0], batch.student.logits, batch.teacher.logits
        weight = per_row(weights[term], student)
        if self.standardize:
            student, teacher = (standardize(live(logits, weight)) for logits in (student, teacher))
        total, soft, _ = kd_loss(
            student,
            teacher,
            temperature=self.temperature,
            soft_weight=weight,
            divergence=self.divergence,
            beta=self.beta,
            reduction="sum",
            return_terms=True,
        )
        return total, {term: soft}


def live(logits: Tensor, weight: Weight) -> Tensor:
    """Logits with zeros in the rows of no weight, whose NaN would reach the gradient of what is done to them."""
    if isinstance(weight, Tensor) and weight.ndim:
        return torch.where((weight != 0).unsqueeze(-1), logits, 0.0)
    return logits


def per_row(weight: Weight, logits: Tensor) -> Weight:
    """A term's weight for each row of ``(B, ..., V)`` logits; rows beyond the weight's dimensions are averaged.

    Args:
        weight: a number, or a tensor ``(B,)`` or ``(B, ...)`` with at most the dimensions of the rows.
        logits: ``(B, ..., V)``.
    """
    dims = weight.ndim if isinstance(weight, Tensor) and weight.ndim else 1
    if logits.ndim == dims + 1:
        return weight
    rows = logits.shape[:-1]
    share = weight / max(1, prod(rows[dims:]))
    if isinstance(share, Tensor) and share.ndim:
        return share.view(*share.shape, *[1] * (len(rows) - dims)).expand(rows)
    return share
