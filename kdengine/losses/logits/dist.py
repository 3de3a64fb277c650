"""Correlations of predictions in place of their exact match."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Scalar
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.standardize import logits_of


class DIST(Loss):
    """Pearson correlation of student and teacher, over the classes of an item and over the items of a class.

    With p = softmax(s / T), q = softmax(t / T), both ``(N, V)``, and the distance d = 1 - Pearson's correlation, the
    terms are (Huang et al. 2022, section 3)::

        inter = T^2 * beta * 1/N sum_i d(p[i, :], q[i, :])
        intra = T^2 * gamma * 1/V sum_v d(p[:, v], q[:, v])

    T^2 is that of the published code. Items of dense logits ``(B, ..., V)`` are all their rows. A masked class (-inf)
    is one of probability 0.

    A correlation with what does not vary is not defined; the distance is then 1 (no correlation) with a gradient of 0,
    and 0 where neither side varies. So for one item ``intra`` is 0. The published code adds 1e-8 to the product of the
    norms instead, which also dampens the classes that are improbable for every item of a batch.

    References:
        Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, sections 3.2 and
        3.3; arXiv:2205.10536

    Args:
        temperature: T > 0; the paper has 1 for ImageNet and 4 for CIFAR-100.
        beta: weight of ``inter``.
        gamma: weight of ``intra``.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`).

    Example:
        >>> DIST().terms
        ('inter', 'intra')
    """

    scope = "batch"
    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"
    terms = ("inter", "intra")
    needs = Needs(classes="exclusive")

    def __init__(
        self, temperature: Scalar = 1.0, beta: Scalar = 1.0, gamma: Scalar = 1.0, standardize: bool = False
    ) -> None:
        super().__init__()
        self.standardize = standardize
        check_number("dist", "temperature", temperature, above=0.0)
        self.temperature: float = temperature
        check_number("dist", "beta", beta, least=0.0)
        self.beta = beta
        check_number("dist", "gamma", gamma, least=0.0)
        self.gamma = gamma

    def value(self, batch: Batch) -> dict[str, Tensor]:
        """Both weighted terms, in float32 or wider."""
        student, teacher = (
            (wide(logits) / self.temperature).softmax(dim=-1).flatten(0, -2)
            for logits in logits_of(batch, self.standardize)
        )  # (N, V)
        square = self.temperature**2
        return {
            "inter": square * self.beta * pearson_distance(student, teacher).mean(),
            "intra": square * self.gamma * pearson_distance(student.t(), teacher.t()).mean(),
        }


def pearson_distance(one: Tensor, other: Tensor) -> Tensor:
    """``1 - cov(x, y) / (std(x) std(y))`` of each row of two matrices ``(N, K)`` that are not negative.

    It is computed as half the squared distance of the standardised rows, which is exact where they are equal.

    Example:
        >>> pearson_distance(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]]))
        tensor([2.0000])
    """
    (x, x_varies), (y, y_varies) = _unit(one), _unit(other)
    distance = 0.5 * (x - y).square().sum(dim=-1)
    return torch.where(x_varies & y_varies, distance, (x_varies | y_varies).to(distance.dtype))


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows less their mean, of length 1; and whether they vary by more than rounding.

    A column of small probabilities is scaled first: their squares would underflow.
    """
    limits = torch.finfo(rows.dtype)
    rows = rows / rows.detach().amax(dim=-1, keepdim=True).clamp(min=limits.tiny)
    centred = rows - rows.mean(dim=-1, keepdim=True)
    square = centred.square().sum(dim=-1, keepdim=True)
    varies = square > (8 * limits.eps) ** 2 * rows.square().sum(dim=-1, keepdim=True)
    return centred / torch.where(varies, square, 1.0).sqrt(), varies.squeeze(-1)
