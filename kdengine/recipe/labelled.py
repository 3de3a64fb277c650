"""A training set of which only a share is labelled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdengine.api import ConfigurationError
from kdengine.engine import random
from kdengine.engine.loader import tensors_of

UNLABELLED = -100
"""The label that torch's cross-entropy ignores by default."""


class Labelled:
    """A data set whose label is hidden for all but a share of each class.

    Which labels stay is a function of (seed, share): the student alone and the distilled student see the same ones.

    Args:
        dataset: has ``targets``.
        share: of each class, at least one item.
        seed: decides which.
    """

    def __init__(self, dataset: Any, share: float, seed: int) -> None:
        self.dataset = dataset
        self.random = getattr(dataset, "random", True)
        self.classes = dataset.classes
        full = torch.as_tensor(list(dataset.targets))
        self.labels = torch.where(choose(full, share, seed), full, UNLABELLED)

    @property
    def targets(self) -> list[int]:
        """Labels; -100 where hidden."""
        labels: list[int] = self.labels.tolist()
        return labels

    @property
    def transform(self) -> Any:
        """The wrapped data set's transform."""
        return getattr(self.dataset, "transform", None)

    @property
    def indexed_tensors(self) -> tuple[Tensor, ...] | None:
        """Inputs and labels, where the wrapped data set is held in memory."""
        tensors = tensors_of(self.dataset)
        return None if tensors is None else (tensors[0], self.labels)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index][0], int(self.labels[index])


def choose(labels: Tensor, share: float, seed: int) -> Tensor:
    """Mask of the items that stay labelled: of each class ``round(share * n)``, at least one.

    >>> choose(torch.tensor([0, 0, 1, 1]), 0.5, seed=0).sum()
    tensor(2)
    """
    if not 0.0 < share <= 1.0:
        raise ConfigurationError(f"labelled is a share between 0 and 1, got {share}")
    kept = torch.zeros(len(labels), dtype=torch.bool)
    generator = random.generator(seed, "labelled")
    for label in sorted(set(labels.tolist())):
        items = (labels == label).nonzero().flatten()
        order = torch.randperm(len(items), generator=generator)
        kept[items[order[: max(1, round(share * len(items)))]]] = True
    return kept
