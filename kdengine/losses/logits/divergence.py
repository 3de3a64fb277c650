"""What the losses of one fused divergence have in common."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar, Literal

from torch import Tensor

from kdengine.api import Batch, Loss, Scalar, Weight
from kdengine.losses.logits.arguments import between, positive
from kdengine.ops import kd_loss


class Divergence(Loss):
    """Base of losses that are ``T^2 * D(softmax(t / T), softmax(s / T))`` per item, by :func:`kdengine.ops.kd_loss`.

    Args:
        temperature: T > 0.
        divergence: D: ``forward_kl``, ``reverse_kl`` or ``jsd``.
        beta: of ``jsd``.

    Attributes:
        label: the loss's name, for messages.
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"
    label: ClassVar[str]

    def __init__(
        self,
        temperature: Scalar,
        divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl",
        beta: Scalar = 0.5,
    ) -> None:
        super().__init__()
        self.temperature: float = positive(self.label, "temperature", temperature)
        self.divergence = divergence
        self.beta: float = between(self.label, "beta", beta)

    def per_item(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The divergence of each item, ``(B, ...)``, in float32 or wider."""
        return kd_loss(
            batch.student.logits,
            batch.teacher.logits,
            temperature=self.temperature,
            divergence=self.divergence,
            beta=self.beta,
            reduction="none",
        )

    def weighted_sum(self, batch: Batch, weights: Mapping[str, Weight]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """One call of the operator, which writes the gradient at its final magnitude."""
        term, student = self.terms[0], batch.student.logits
        total, soft, _ = kd_loss(
            student,
            batch.teacher.logits,
            temperature=self.temperature,
            soft_weight=per_row(weights[term], student),
            divergence=self.divergence,
            beta=self.beta,
            reduction="sum",
            return_terms=True,
        )
        return total, {term: soft}


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
