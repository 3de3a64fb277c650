"""Distances and angles between the items of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kdengine.api import Batch, ConfigurationError, Scalar
from kdengine.losses.arguments import check_number
from kdengine.losses.hints.pairs import Paths
from kdengine.losses.relations.embeddings import EmbeddingLoss, unit


class RKD(EmbeddingLoss):
    """Relational knowledge distillation: the student keeps the distances and angles among the teacher's embeddings.

    With h the Huber loss (``d^2 / 2`` up to 1, ``|d| - 1/2`` beyond) of a difference, and s and t the embeddings::

        distance = distance_weight * 1/B^2 sum_ij h(|s_i - s_j| / m_s - |t_i - t_j| / m_t)
        angle    = angle_weight    * 1/B^3 sum_ijk h(cos(s_i s_j s_k) - cos(t_i t_j t_k))

    where m is the mean of a model's distances over the B (B - 1) pairs of different items, and ``cos(x_i x_j x_k)`` the
    cosine of the angle at ``x_j``, 0 where one of its sides has no length. The paper's sums are means over all pairs
    and triplets here, as in the code that it was published with, for which the weights 25 and 50 are meant.

    One item alone costs nothing. The angles take B^2 D and B^3 numbers of memory; a weight of 0 leaves a term out.

    References:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, sections 3.2.1 and 3.2.2; arXiv:1904.05068

    Args:
        distance_weight: factor of the distances.
        angle_weight: factor of the angles.
        student: paths of features in the student; None for the logits. The paper takes the last embedding.
        teacher: as many paths in the teacher.
        pool: whether features are averaged over their positions instead of flattened.

    Example:
        >>> RKD(student="pool", teacher="pool").terms
        ('distance', 'angle')
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"
    terms = ("distance", "angle")

    def __init__(
        self,
        distance_weight: Scalar = 25.0,
        angle_weight: Scalar = 50.0,
        student: Paths | None = None,
        teacher: Paths | None = None,
        pool: bool = False,
    ) -> None:
        super().__init__(student, teacher, pool)
        check_number("rkd", "distance_weight", distance_weight, least=0.0)
        check_number("rkd", "angle_weight", angle_weight, least=0.0)
        if distance_weight == angle_weight == 0:
            raise ConfigurationError("rkd: distance_weight and angle_weight are both 0: expected one above it")
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def value(self, batch: Batch) -> Mapping[str, Tensor]:
        """Both terms, each with its weight."""
        sides = [(between(student), between(teacher)) for student, teacher in self.embeddings(batch)]

        def term(weight: float, relation: Callable[[Tensor], Tensor]) -> Tensor:
            if weight == 0:
                return 0.0 * torch.stack([student.sum() for student, _ in sides]).sum()
            losses = [F.smooth_l1_loss(relation(student), relation(teacher)) for student, teacher in sides]
            return weight * torch.stack(losses).sum()

        return {"distance": term(self.distance_weight, distances), "angle": term(self.angle_weight, angles)}


def between(embeddings: Tensor) -> Tensor:
    """The difference of every two items: ``(B, D)`` to ``(B, B, D)``."""
    return embeddings[:, None] - embeddings[None]


def distances(differences: Tensor) -> Tensor:
    """Euclidean distances ``(B, B)``, relative to their mean over different items; those of equal items are 0.

    The gradient of a distance of 0 is taken as 0.
    """
    squares = differences.square().sum(dim=-1)
    apart = squares > 0
    found = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
    items = len(found)
    mean = found.sum() / max(1, items * (items - 1))
    return found / torch.where(mean > 0, mean, 1.0)


def angles(differences: Tensor) -> Tensor:
    """``(B, B, B)``: at ``[j, i, k]`` the cosine of the angle at item j between items i and k; 0 for i = k."""
    sides = unit(differences)
    same = torch.eye(len(sides), dtype=torch.bool, device=sides.device)
    return (sides @ sides.transpose(1, 2)).masked_fill(same, 0.0)
