"""Learned maps from a student's feature ``(B, *student_shape)`` to a teacher's ``(B, *teacher_shape)``.

Romero et al., "FitNets", ICLR 2015, section 2.2: the regressor between hint and guided layer, here with a 1x1
convolution where both are feature maps.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kdengine.api import ConfigurationError


class Linear(nn.Module):
    """A linear layer on the last dimension, for features ``(B, D)`` or ``(B, tokens, D)``.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Raises:
        ConfigurationError: the shapes differ in more than their last dimension.
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        student, teacher = tuple(student_shape), tuple(teacher_shape)
        if len(student) not in (1, 2) or student[:-1] != teacher[:-1]:
            raise ConfigurationError(
                "projector 'linear' maps (B, D) to (B, D') or (B, tokens, D) to (B, tokens, D') with as many tokens; "
                f"got a student feature {_shown(student)} and a teacher feature {_shown(teacher)}"
            )
        self.linear = nn.Linear(student[-1], teacher[-1])

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""
        projected: Tensor = self.linear(feature)
        return projected


class Conv1x1(nn.Module):
    """A 1x1 convolution, then bilinear interpolation where the maps differ in size; for features ``(B, C, H, W)``.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Raises:
        ConfigurationError: a shape is not (C, H, W).
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        student, teacher = tuple(student_shape), tuple(teacher_shape)
        if len(student) != 3 or len(teacher) != 3:
            raise ConfigurationError(
                "projector 'conv1x1' maps feature maps (B, C, H, W) to (B, C', H', W'); "
                f"got a student feature {_shown(student)} and a teacher feature {_shown(teacher)}"
            )
        self.size = teacher[1:]
        self.conv = nn.Conv2d(student[0], teacher[0], 1)

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""
        projected: Tensor = self.conv(feature)
        if projected.shape[-2:] == self.size:
            return projected
        return F.interpolate(projected, size=self.size, mode="bilinear", align_corners=False)


def auto(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> nn.Module:
    """The projector that fits: none for equal shapes, a 1x1 convolution for feature maps, else a linear layer.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Returns:
        a module that maps ``(B, *student_shape)`` to ``(B, *teacher_shape)``.

    Raises:
        ConfigurationError: no builtin projector maps one shape to the other.

    Example:
        >>> auto((16, 8, 8), (64, 8, 8))
        Conv1x1(
          (conv): Conv2d(16, 64, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    student, teacher = tuple(student_shape), tuple(teacher_shape)
    if student == teacher:
        return nn.Identity()
    if len(student) == len(teacher) == 3:
        return Conv1x1(student, teacher)
    if len(student) == len(teacher) <= 2 and student[:-1] == teacher[:-1]:
        return Linear(student, teacher)
    raise ConfigurationError(
        f"no builtin projector maps a student feature {_shown(student)} to a teacher feature {_shown(teacher)}: "
        "feature maps (B, C, H, W) may differ in channels and size; vectors (B, D) and tokens (B, tokens, D) in D; "
        "name features of the same kind, or offer a projector of your own"
    )


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['B', *map(str, shape)])})"
