"""Predictions matched at the levels of instance, batch and class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss, Needs
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_choice, check_number
from kdengine.losses.logits.standardize import logits_of
from kdengine.ops import kd_loss

Rows = tuple[Tensor, Tensor]
"""Logits of student and teacher, ``(N, V)`` each."""


class MultiLevel(Loss):
    """Multi-level logit distillation: predictions, how items relate and how classes relate, at several temperatures.

    With p = softmax(s / T), q = softmax(t / T), both ``(N, V)``, and summed over the temperatures ("prediction
    augmentation"), the terms are (Jin et al. 2023, section 3)::

        instance = T^2 * 1/N sum_i KL(q_i || p_i)
        batch    = 1/N || p p^T - q q^T ||_F^2
        class    = 1/V || p^T p - q^T q ||_F^2

    T^2 stands in the divergence alone, as in the published code. Other losses here have it wherever they have a
    temperature; in the other two levels it would be a factor of 4 to 36 (tried: a small student of handwritten digits
    then ended below the one trained alone). ``class`` is not divided by N and grows with its square, so with large
    batches and few classes it outweighs the others.

    Two things are left to the user. The published trainer adds the losses of a second, strongly augmented view. And it
    multiplies the value of each level, which is one number by then, by a mask of the half of the items (of the classes
    for ``class``) of which the teacher is least confident, and takes the mean: that halves every level of the first
    view, so a published weight carries over as half of it.

    Items of dense logits ``(B, ..., V)`` are all their rows.

    References:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, sections 3.2 and 3.3

    Args:
        temperatures: each T > 0.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`):
            those of ``instance``, as in the published code of Sun et al. 2024, whose other levels see them as they are;
            ``"all"`` for all three levels.

    Example:
        >>> MultiLevel().terms
        ('instance', 'batch', 'class')
    """

    scope = "batch"
    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"
    terms = ("instance", "batch", "class")
    needs = Needs(classes="exclusive")

    def __init__(
        self,
        temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
        standardize: bool | Literal["all"] = False,
    ) -> None:
        super().__init__()
        if not isinstance(temperatures, list | tuple) or not temperatures:
            raise ConfigurationError(
                f"the loss multi_level needs temperatures as a list with at least one number, got {temperatures!r}"
            )
        for each in temperatures:
            check_number("multi_level", "each of temperatures", each, above=0.0, scheduled=False)
        self.temperatures = tuple(map(float, temperatures))
        check_choice("multi_level", "standardize", standardize, (False, True, "all"))
        self.standardize: bool | Literal["all"] = standardize if standardize == "all" else bool(standardize)

    def value(self, batch: Batch) -> dict[str, Tensor]:
        """The three terms, in float32 or wider."""
        soft = rows_of(batch, standardized=self.standardize is not False)
        plain = soft if self.standardize in (False, "all") else rows_of(batch, standardized=False)
        levels = [self._levels(soft, plain, temperature) for temperature in self.temperatures]
        return {
            term: torch.stack(values).sum() for term, values in zip(self.terms, zip(*levels, strict=True), strict=True)
        }

    def _levels(self, soft: Rows, plain: Rows, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the three levels at one temperature.

        Args:
            soft: logits for ``instance``.
            plain: logits for the other two.
            temperature: T.
        """
        p, q = ((logits / temperature).softmax(dim=-1) for logits in plain)
        return (
            kd_loss(*soft, temperature=temperature),
            gram_distance(p, q) / len(p),
            gram_distance(p.t(), q.t()) / p.shape[-1],
        )


def rows_of(batch: Batch, *, standardized: bool) -> Rows:
    """Return the logits of student and teacher as rows, ``(N, V)``, in float32 or wider."""
    student, teacher = (wide(logits).flatten(0, -2) for logits in logits_of(batch, standardized))
    return student, teacher


def gram_distance(one: Tensor, other: Tensor) -> Tensor:
    """``|| x x^T - y y^T ||_F^2`` of two matrices ``(N, K)``, by matrices of the smaller of N and K.

    With d = x - y and m = x + y it is ``1/2 (<d^T d, m^T m> + tr (d^T m)^2)``, where nothing large cancels as x comes
    near y.

    Example:
        >>> gram_distance(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]]))
        tensor(2.)
    """
    if one.shape[0] <= one.shape[1]:
        return (one @ one.t() - other @ other.t()).square().sum()
    difference, total = one - other, one + other
    mixed = difference.t() @ total
    return 0.5 * ((difference.t() @ difference) * (total.t() @ total) + mixed * mixed.t()).sum()
