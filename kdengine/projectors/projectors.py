"""Learned maps from a student's feature ``(B, *student_shape)`` to a teacher's ``(B, *teacher_shape)``.

Romero et al., "FitNets", ICLR 2015, section 2.2: the regressor between hint and guided layer, here with a 1x1
convolution where both are feature maps.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdengine.api import ConfigurationError
from kdengine.projectors.shapes import refuse, shown
from kdengine.projectors.tokens import Tokens, resize_map


class Linear(nn.Module):
    """A linear layer on the last dimension, for features ``(B, D)``, ``(B, tokens, D)`` or any ``(B, ..., D)``.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Raises:
        ConfigurationError: the shapes differ in more than their last dimension.
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        student, teacher = _alike_but_for_width("linear", student_shape, teacher_shape)
        self.linear = nn.Linear(student, teacher)

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""
        projected: Tensor = self.linear(feature)
        return projected


class MLP(nn.Module):
    """Two linear layers on the last dimension with a ReLU between, as wide as the teacher, for any ``(B, ..., D)``.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Raises:
        ConfigurationError: the shapes differ in more than their last dimension.
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        student, teacher = _alike_but_for_width("mlp", student_shape, teacher_shape)
        self.layers = nn.Sequential(nn.Linear(student, teacher), nn.ReLU(), nn.Linear(teacher, teacher))

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""
        projected: Tensor = self.layers(feature)
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
        if not len(student) == len(teacher) == 3:
            raise refuse("conv1x1", "feature maps (B, C, H, W) to (B, C', H', W')", student, teacher)
        self.size = teacher[1:]
        self.conv = nn.Conv2d(student[0], teacher[0], 1)

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""
        return resize_map(self.conv(feature), self.size)


def auto(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> nn.Module:
    """The projector that fits the shapes.

    * equal shapes: none;
    * vectors ``(B, D)``, and tokens ``(B, tokens, D)`` as many: ``linear``;
    * feature maps ``(B, C, H, W)``: ``conv1x1``;
    * tokens of other numbers, a map and tokens: ``tokens``.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Returns:
        a module that maps ``(B, *student_shape)`` to ``(B, *teacher_shape)``.

    Raises:
        ConfigurationError: no builtin projector maps one shape to the other, or maps look like channels-last ones.

    Example:
        >>> auto((16, 8, 8), (64, 8, 8))
        Conv1x1(
          (conv): Conv2d(16, 64, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    student, teacher = tuple(student_shape), tuple(teacher_shape)
    if student == teacher:
        return nn.Identity()
    for shape in (student, teacher):
        if len(shape) == 3 and shape[0] == shape[1] != shape[2]:
            raise ConfigurationError(
                f"a feature {shown(shape)} looks like a map with its channels last, and projectors expect "
                "(B, C, H, W): name 'conv1x1' if it is one, 'linear' for channels-last maps of one size "
                f"(student {shown(student)}, teacher {shown(teacher)})"
            )
    kinds = (len(student), len(teacher))
    if kinds == (3, 3):
        return Conv1x1(student, teacher)
    if kinds == (1, 1) or (kinds == (2, 2) and student[0] == teacher[0]):
        return Linear(student, teacher)
    if kinds in ((2, 2), (2, 3), (3, 2)):
        return Tokens(student, teacher)
    raise ConfigurationError(
        f"no builtin projector maps a student feature {shown(student)} to a teacher feature {shown(teacher)}: "
        "there are ones between vectors (B, D), between feature maps (B, C, H, W), between tokens (B, tokens, D), and "
        "between maps and tokens; name features of these kinds, or offer a projector of your own"
    )


def _alike_but_for_width(name: str, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> tuple[int, int]:
    student, teacher = tuple(student_shape), tuple(teacher_shape)
    if not student or student[:-1] != teacher[:-1] or len(student) != len(teacher):
        expected = "(B, ..., D) to (B, ..., D'), alike but for the last dimension"
        raise refuse(name, expected, student, teacher)
    return student[-1], teacher[-1]
