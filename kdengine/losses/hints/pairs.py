"""Losses on pairs of features, one of each model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss, Needs
from kdengine.api.features import select
from kdengine.api.loss import wide

Paths = str | Sequence[str]
"""One path of a module, or several: exact, with wildcards, or with ``:input`` behind."""


class FeatureLoss(Loss):
    """Base of losses that compare features of the student with features of the teacher, pair by pair.

    Args:
        student: paths in the student: one, several, or with wildcards (``layer*``); ``layer3:input`` is what goes in.
        teacher: paths in the teacher, as many.
    """

    def __init__(self, student: Paths, teacher: Paths) -> None:
        super().__init__()
        self.student = _several(student)
        self.teacher = _several(teacher)
        self.needs = Needs(logits=False, student_features=self.student, teacher_features=self.teacher)

    def pairs(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """A feature of the student and its counterpart of the teacher, in one dtype of float32 or wider.

        Raises:
            ConfigurationError: there are not as many of one as of the other.
        """
        students = select(batch.student.features, self.student)
        teachers = select(batch.teacher.features, self.teacher)
        if len(students) != len(teachers):
            raise ConfigurationError(
                f"{type(self).__name__} compares features in pairs, but student={list(self.student)} names "
                f"{len(students)} and teacher={list(self.teacher)} names {len(teachers)}"
            )
        widened = [wide(student) for student in students]
        return [(student, teacher.to(student.dtype)) for student, teacher in zip(widened, teachers, strict=True)]


def _several(paths: Paths) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else tuple(paths)
