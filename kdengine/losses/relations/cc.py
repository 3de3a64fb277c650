"""Correlations between the items of a batch."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from torch import Tensor

from kdengine.api import Batch, Scalar
from kdengine.losses.arguments import check_number, check_whole
from kdengine.losses.hints.pairs import Paths
from kdengine.losses.relations.embeddings import EmbeddingLoss, unit


class CC(EmbeddingLoss):
    """Correlation congruence: the student keeps the teacher's correlations between items.

    ``1/B^2 || C(S) - C(T) ||_F^2`` (Peng et al. 2019, section 3), where C holds the Gaussian kernel of every two items,
    whose embeddings are divided by their Euclidean length, as the first terms of its Taylor series::

        exp(-g |x - y|^2) ~ sum_{p=0..P} exp(-2 g) (2 g)^p / p! (x . y)^p

    An item of zeros has no direction, and an inner product of 0 with every other. One item alone costs nothing.

    References:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, section 3; arXiv:1904.01802

    Args:
        gamma: g, the inverse width of the kernel.
        order: P, the last term of the series.
        student: paths of features in the student; None for the logits. Of several pairs the values are added.
        teacher: as many paths in the teacher; the features of a pair may differ in shape.
        pool: whether features are averaged over their positions instead of flattened.

    Example:
        >>> CC(student="pool", teacher="pool").gamma
        0.4
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"

    def __init__(
        self,
        gamma: Scalar = 0.4,
        order: int = 2,
        student: Paths | None = None,
        teacher: Paths | None = None,
        pool: bool = False,
    ) -> None:
        super().__init__(student, teacher, pool)
        check_number("cc", "gamma", gamma, above=0.0)
        check_whole("cc", "order", order, least=1)
        self.gamma = gamma
        self.order = order

    def value(self, batch: Batch) -> Tensor:
        """The mean over pairs of items of the squared difference between their correlations."""
        return self.total(batch, lambda student, teacher: (self.kernel(student) - self.kernel(teacher)).square().mean())

    def kernel(self, embeddings: Tensor) -> Tensor:
        """The Gaussian kernel of every two items, ``(B, B)``, without its constant term, which differences lose."""
        directions = unit(embeddings)
        cosines = directions @ directions.T
        gamma: float = self.gamma
        factors = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(self.order + 1)]
        found = cosines * factors[self.order]
        for factor in factors[-2:0:-1]:
            found = (found + factor) * cosines
        return found
