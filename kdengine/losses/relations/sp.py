"""Similarities between the items of a batch."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from kdengine.api import Batch
from kdengine.losses.hints.pairs import Paths
from kdengine.losses.relations.embeddings import EmbeddingLoss, unit


class SP(EmbeddingLoss):
    """Similarity-preserving distillation: items that are alike for the teacher are alike for the student.

    ``1/B^2 sum_pairs || G(S) - G(T) ||_F^2`` (Tung and Mori 2019, equations 1 to 4), where S and T hold one item's
    activations in each row, and G(Q) is ``Q Q^T`` with each row divided by its Euclidean length. An item of zeros is
    alike to none: its row of G is 0. One item alone costs nothing.

    References:
        Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equations 1 to 4; arXiv:1907.09682

    Args:
        student: paths of features in the student; None for the logits. The paper takes the last feature map. Of several
            pairs the values are added.
        teacher: as many paths in the teacher; the features of a pair may differ in shape.
        pool: whether features are averaged over their positions instead of flattened.

    Example:
        >>> SP(student="layer4", teacher="layer4").scope
        'batch'
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"

    def __init__(self, student: Paths | None = None, teacher: Paths | None = None, pool: bool = False) -> None:
        super().__init__(student, teacher, pool)

    def value(self, batch: Batch) -> Tensor:
        """The mean over pairs of items of the squared difference between their similarities."""
        return self.total(
            batch, lambda student, teacher: (similarities(student) - similarities(teacher)).square().mean()
        )


def similarities(embeddings: Tensor) -> Tensor:
    """Inner products of every two items, ``(B, B)``, each row of length 1."""
    return unit(embeddings @ embeddings.T)
