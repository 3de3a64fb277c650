"""Losses on pairs of features, one of each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError, Loss, Needs
from kdengine.api.features import resolve
from kdengine.api.loss import wide

Paths = str | Sequence[str]
"""One path of a module, or several: exact, with wildcards, or with ``:input`` behind."""


class Pair(NamedTuple):
    """A feature of the student and its counterpart of the teacher, in one dtype of float32 or wider."""

    student: Tensor
    teacher: Tensor


class FeatureLoss(Loss):
    """Base of losses that compare features of the student with features of the teacher, pair by pair.

    The first path of the student goes with the first of the teacher, and so on; what a wildcard names comes in the
    order of the model's modules.

    Args:
        student: paths in the student: one, several, or with wildcards (``layer*``); ``layer3:input`` is what goes in.
        teacher: paths in the teacher, as many.

    Example:
        >>> import torch
        >>> from kdengine.api import Output
        >>> batch = Batch(torch.zeros(2, 3))
        >>> features = {"layer1": torch.zeros(2, 4), "layer2": torch.zeros(2, 8)}
        >>> batch.student = batch.teacher = Output(None, None, features)
        >>> [tuple(pair.student.shape) for pair in FeatureLoss("layer*", ["layer1", "layer2"]).pairs(batch)]
        [(2, 4), (2, 8)]
    """

    def __init__(self, student: Paths, teacher: Paths) -> None:
        super().__init__()
        self.student = self._several(student, "student")
        self.teacher = self._several(teacher, "teacher")
        self.needs = Needs(logits=False, student_features=self.student, teacher_features=self.teacher)

    def setup(self, example: Batch) -> None:
        """See that the features make pairs."""
        self.pairs(example)

    def names(self, batch: Batch) -> list[tuple[str, str]]:
        """The paths of each pair, without wildcards.

        Raises:
            ConfigurationError: there are not as many of one as of the other.
        """
        students = resolve(batch.student.features, self.student)
        teachers = resolve(batch.teacher.features, self.teacher)
        if len(students) != len(teachers):
            raise ConfigurationError(
                f"{type(self).__name__} compares features in pairs, but student={list(self.student)} names "
                f"{len(students)} ({', '.join(students)}) and teacher={list(self.teacher)} names {len(teachers)} "
                f"({', '.join(teachers)})"
            )
        return list(zip(students, teachers, strict=True))

    def pairs(self, batch: Batch) -> list[Pair]:
        """The features of each pair, in one dtype of float32 or wider.

        Raises:
            ConfigurationError: there are not as many of one as of the other, or they are not of the same items.
        """
        found = []
        for ours, theirs in self.names(batch):
            student, teacher = wide(batch.student.features[ours]), batch.teacher.features[theirs]
            if not student.size(0) == teacher.size(0) == batch.size:
                raise ConfigurationError(
                    f"the student's {ours!r} is {shown(student.shape)} and the teacher's {theirs!r} "
                    f"{shown(teacher.shape)}; expected the {batch.size} items of the batch as the first dimension"
                )
            found.append(Pair(student, teacher.to(student.dtype)))
        return found

    def make_projectors(self, example: Batch) -> nn.ModuleList:
        """A projector for each pair, from the student's shape to the teacher's; for :meth:`setup`.

        Raises:
            ConfigurationError: a pair's shapes cannot be matched; it names the pair.
        """
        if not callable(self.projector):
            raise ConfigurationError(
                "projector must be the name of one, or a factory fn(student_shape, teacher_shape), "
                f"got {self.projector!r}"
            )
        made = nn.ModuleList()
        for (ours, theirs), (student, teacher) in zip(self.names(example), self.pairs(example), strict=True):
            try:
                made.append(self.projector(tuple(student.shape[1:]), tuple(teacher.shape[1:])))
            except ValueError as error:
                raise ConfigurationError(f"student {ours!r} and teacher {theirs!r}: {error}") from error
        return made

    def _several(self, paths: Paths, argument: str) -> tuple[str, ...]:
        several = (paths,) if isinstance(paths, str) else tuple(paths or ())
        if not several or not all(isinstance(path, str) for path in several):
            raise ConfigurationError(
                f"{type(self).__name__}: {argument} must be the path of a module, or several, got {paths!r}"
            )
        return several


def shown(shape: Sequence[int]) -> str:
    """A shape for a person; the first dimension is the batch."""
    return f"({', '.join(map(str, shape))})"
