"""Probabilities of items as neighbours of each other."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from kdengine.api import Batch
from kdengine.losses.hints.pairs import Paths
from kdengine.losses.relations.embeddings import EmbeddingLoss, unit

FLOOR = 1e-7
"""Added to the kernel, whose logarithm would be infinite between opposite items; as in the published code."""


class PKT(EmbeddingLoss):
    """Probabilistic knowledge transfer: an item's neighbours for the student are as probable as for the teacher.

    With the cosine kernel ``K(x, y) = (1 + cos(x, y)) / 2`` and p of the teacher's embeddings, q of the student's
    (Passalis and Tefas 2018, section 3)::

        p(j | i) = K(t_i, t_j) / sum_{k != i} K(t_i, t_k)
        1/B sum_i sum_{j != i} p(j | i) log(p(j | i) / q(j | i))

    The paper adds up the divergences of all items, here is their mean. The code that it was published with counts the
    item itself among its neighbours, and takes the mean over all B^2 pairs: its value is about B times smaller.

    One item alone costs nothing, nor do two. An item of zeros is as near to one item as to any other.

    References:
        Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, section 3;
        arXiv:1803.10837

    Args:
        student: paths of features in the student; None for the logits. The paper takes the last embedding. Of several
            pairs the values are added.
        teacher: as many paths in the teacher; the features of a pair may differ in shape.
        pool: whether features are averaged over their positions instead of flattened.

    Example:
        >>> PKT().needs.logits
        True
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"

    def __init__(self, student: Paths | None = None, teacher: Paths | None = None, pool: bool = False) -> None:
        super().__init__(student, teacher, pool)

    def value(self, batch: Batch) -> Tensor:
        """The mean of the items' divergences."""
        return self.total(batch, divergence)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over items of ``KL(p || q)``, of embeddings ``(B, D)`` and ``(B, D')``."""
    q, p = (log_probabilities(embeddings) for embeddings in (student, teacher))
    return (p.exp() * (p - q)).sum() / len(student)


def log_probabilities(embeddings: Tensor) -> Tensor:
    """``log p(j | i)`` in row i for the other items j in their order: ``(B, B - 1)``."""
    directions = unit(embeddings)
    cosines = directions @ directions.T
    items = len(cosines)
    others = cosines.flatten()[1:].view(items - 1, items + 1)[:, :-1].reshape(items, items - 1)
    return ((1 + others) / 2).clamp(min=0).add(FLOOR).log().log_softmax(dim=1)
