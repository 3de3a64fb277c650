"""What relations are measured on: one vector for each item of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss, Needs
from kdengine.api.loss import wide
from kdengine.losses.hints.pairs import FeatureLoss, Pair, Paths


class EmbeddingLoss(FeatureLoss):
    """Base of losses on relations between items, each of which is one vector: its logits, or a feature.

    Args:
        student: paths in the student, as :class:`~kdengine.losses.hints.pairs.FeatureLoss` takes them; None for the
            logits. Of several pairs the values are added.
        teacher: as many paths in the teacher.
        pool: whether a feature is averaged over its positions before it is flattened.
    """

    scope: ClassVar[Literal["item", "batch"]] = "batch"

    def __init__(self, student: Paths | None = None, teacher: Paths | None = None, pool: bool = False) -> None:
        if (student is None) != (teacher is None):
            raise ConfigurationError(
                f"{type(self).__name__.lower()}: student={student!r} and teacher={teacher!r}: expected paths of "
                "features in both models, or none, which compares the logits"
            )
        if student is None or teacher is None:
            Loss.__init__(self)
            self.student = self.teacher = ()
            self.needs = Needs()
        else:
            super().__init__(student, teacher)
        self.pool = pool

    def embeddings(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """For each pair, a vector of every item in both models: ``(B, D)`` and ``(B, D')``, float32 or wider."""
        if self.needs.logits:
            student = wide(batch.student.logits)
            pairs = [Pair(student, batch.teacher.logits.to(student.dtype))]
        else:
            pairs = self.pairs(batch)
        return [(vectors(student, self.pool), vectors(teacher, self.pool)) for student, teacher in pairs]

    def total(self, batch: Batch, relation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum of ``relation(student, teacher)`` over all pairs."""
        return torch.stack([relation(*pair) for pair in self.embeddings(batch)]).sum()


def vectors(feature: Tensor, pool: bool = False) -> Tensor:
    """One vector per item.

    Args:
        feature: ``(B, ...)``.
        pool: whether to average over positions: those of a map ``(B, C, H, W)``, the tokens of ``(B, tokens, D)``.

    Returns:
        ``(B, D)``: the rest of the dimensions as one.

    Example:
        >>> [tuple(vectors(torch.zeros(2, 3, 4, 4), pool).shape) for pool in (False, True)]
        [(2, 48), (2, 3)]
        >>> vectors(torch.zeros(2, 7, 5), pool=True).shape
        torch.Size([2, 5])
    """
    if pool and feature.ndim == 3:
        return feature.mean(dim=1)
    if pool and feature.ndim > 3:
        return feature.flatten(2).mean(dim=2)
    return feature.reshape(feature.shape[0], feature.shape[1:].numel())


def unit(rows: Tensor) -> Tensor:
    """Vectors in the last dimension, each divided by its Euclidean length.

    A vector of zeros has no direction: it stays as it is, and its gradient is zero.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    squares = rows.square().sum(dim=-1, keepdim=True)
    directed = squares > 0
    return torch.where(directed, rows / torch.where(directed, squares, 1.0).sqrt(), 0.0)
