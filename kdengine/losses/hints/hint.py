"""Hints: a student layer that regresses a teacher layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from kdengine.api import Batch, Loss, Needs
from kdengine.api.loss import wide


class Hint(Loss):
    """Mean squared error between a projected student feature and a teacher feature (FitNets).

    ``1/2 || u_h(x) - r(v_g(x)) ||^2`` (Romero et al. 2015, equation 3), with the square averaged over the feature's
    elements; r is the regressor, trained with the student and left out of its export.

    References:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3; arXiv:1412.6550

    Args:
        student: path of the student's module.
        teacher: path of the teacher's module.
        projector: name of a projector (``auto``: none for equal shapes, a 1x1 convolution with a resize for maps,
            linear for vectors and tokens), or a factory ``fn(student_shape, teacher_shape) -> nn.Module``.

    Example:
        >>> Hint(student="layer3", teacher="layer3").needs.student_features
        ('layer3',)
    """

    def __init__(self, student: str, teacher: str, projector: str | Callable[..., nn.Module] = "auto") -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.projector = projector
        self.regressor: nn.Module | None = None
        self.needs = Needs(logits=False, student_features=(student,), teacher_features=(teacher,))

    def setup(self, example: Batch) -> None:
        """Make the regressor for the shapes of the two features, without their batch dimension."""
        student, teacher = self._features(example)
        assert callable(self.projector), "the engine puts the factory in the place of its name"
        self.regressor = self.projector(tuple(student.shape[1:]), tuple(teacher.shape[1:]))

    def per_item(self, batch: Batch) -> Tensor:
        """Half the squared difference of each element, ``(B, ...)``, which the engine averages within the item."""
        assert self.regressor is not None, "setup runs before the first step"
        student, teacher = self._features(batch)
        error: Tensor = self.regressor(student) - teacher
        return 0.5 * error.square()

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        student, teacher = batch.student.features[self.student], batch.teacher.features[self.teacher]
        student = wide(student)
        return student, teacher.to(student.dtype)
