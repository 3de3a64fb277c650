"""Divergence of the probabilities of many labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Scalar
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.bernoulli import bernoulli_kl


class BinaryKL(Loss):
    """Binary divergence of the student from its teacher, label by label, times T^2: for several labels per item.

    ``T^2 * sum_v KL(Bernoulli(p_v) || Bernoulli(q_v))`` per item, with p = sigmoid(t / T) and q = sigmoid(s / T): the
    multi-label logits distillation of Yang et al. 2023 ("Multi-Label Knowledge Distillation", the loss L_MLD: one
    against all, summed over labels), which has T = 1; T^2 as for ``kd``. A label that both mask (-inf) costs nothing.

    References:
        Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, section 3; arXiv:2308.06453

    Args:
        temperature: T > 0.

    Example:
        >>> BinaryKL(temperature=2.0).at_equality
        'zero'
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"
    needs = Needs(classes="independent")

    def __init__(self, temperature: Scalar = 1.0) -> None:
        super().__init__()
        check_number("binary_kl", "temperature", temperature, above=0.0)
        self.temperature: float = temperature

    def per_item(self, batch: Batch) -> Tensor:
        """The sum over labels of each item, ``(B, ...)``, in float32 or wider."""
        student, teacher = wide(batch.student.logits), wide(batch.teacher.logits)
        values = bernoulli_kl(student, teacher, self.temperature)
        return values if values.ndim == 1 else values.sum(dim=-1)  # (B,): one number per item
