"""The sum over pairs of features of a value for each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError
from kdengine.losses.hints.pairs import FeatureLoss, Pair


class PairwiseLoss(FeatureLoss):
    """Base of losses whose value is a sum over pairs of features.

    A loss implements :meth:`compare`. What it learns for each pair is made in :meth:`prepare`, from real shapes,
    trained with the student, kept in checkpoints and left out of the exported student.

    Args:
        student: paths in the student, as :class:`~kdengine.losses.hints.pairs.FeatureLoss` takes them.
        teacher: as many paths in the teacher.
    """

    def __init__(self, student: str | Sequence[str], teacher: str | Sequence[str]) -> None:
        super().__init__(student, teacher)
        self.learned = nn.ModuleList()

    def setup(self, example: Batch) -> None:
        """Prepare every pair.

        Raises:
            ConfigurationError: the shapes of a pair do not fit the loss; it names loss, paths and shapes.
        """
        made = []
        for names, pair in zip(self.names(example), self.pairs(example), strict=True):
            try:
                made.append(self.prepare(pair, names, example))
            except ValueError as error:
                raise ConfigurationError(f"{self.place(names, pair)}: {error}") from error
        self.learned = nn.ModuleList(made)

    def place(self, names: tuple[str, str], pair: Pair) -> str:
        """The loss, the paths and the shapes of a pair, for a message."""
        ours, theirs = (
            f"{name!r} ({', '.join(map(str, value.shape))})" for name, value in zip(names, pair, strict=True)
        )
        return f"{type(self).__name__}: student {ours} and teacher {theirs}"

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """Check the shapes of a pair, and make what is learned for it.

        Args:
            pair: its features.
            names: its paths, in the student and in the teacher.
            example: the batch that they are of.

        Raises:
            ConfigurationError: the shapes do not fit; what it says is put behind loss, paths and shapes.
        """
        return nn.Identity()

    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module) -> Tensor:
        """The value of each item for one pair, ``(B,)``.

        Args:
            student: the student's feature, float32 or wider.
            teacher: the teacher's, in the same dtype.
            learned: what :meth:`prepare` made for the pair.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement compare(student, teacher, learned)")

    def combine(self, values: Sequence[Tensor]) -> Tensor:
        """All pairs as one, ``(B,)``: their sum."""
        return torch.stack(list(values)).sum(dim=0)

    def total(self, batch: Batch) -> Tensor:
        """All pairs of each item as one, ``(B,)``."""
        pairs = self.pairs(batch)
        learned = self.learned if len(self.learned) else [nn.Identity()] * len(pairs)
        return self.combine([self.compare(*pair, part) for pair, part in zip(pairs, learned, strict=True)])

    def per_item(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The value of each item, ``(B,)``."""
        return self.total(batch)

    def value(self, batch: Batch) -> Tensor:
        """The mean over items, where the loss has the scope ``"batch"``."""
        return self.total(batch).mean()


def halved(values: Sequence[Tensor]) -> list[Tensor]:
    """The last value in full, and each one before it with half the weight of the next.

    Example:
        >>> halved([torch.tensor(8.0), torch.tensor(8.0), torch.tensor(8.0)])
        [tensor(2.), tensor(4.), tensor(8.)]
    """
    return [value * 0.5 ** (len(values) - 1 - at) for at, value in enumerate(values)]
