"""Projectors between features with other numbers of positions: tokens, and tokens and maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kdengine.projectors.shapes import Layout, layouts, refuse


class Resize(nn.Module):
    """Interpolation to the teacher's positions, without parameters; both features are as wide.

    Feature maps ``(B, C, H, W)`` are interpolated bilinearly. Tokens ``(B, tokens, D)`` are too where both features are
    square grids of tokens, or one is a map: the grid's rows are read one after another. Up to two tokens may come
    before the grid, such as a class token: those that the teacher has as well are kept, what it lacks is left out, and
    what the student lacks is the mean over its grid. Other numbers of tokens are interpolated linearly along the row.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Raises:
        ConfigurationError: the features differ in width, or are neither tokens nor maps.

    Example:
        >>> Resize((197, 384), (50, 384))(torch.zeros(2, 197, 384)).shape
        torch.Size([2, 50, 384])
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        student, teacher = tuple(student_shape), tuple(teacher_shape)
        kinds = {len(student), len(teacher)}
        if not kinds <= {2, 3} or width_of(student) != width_of(teacher):
            raise refuse("resize", "maps (B, C, H, W) and tokens (B, tokens, C) of one width C", student, teacher)
        self.size = teacher[1:]
        self.positions = None if kinds == {3} else Positions(student, teacher)

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""
        return resize_map(feature, self.size) if self.positions is None else self.positions(feature)


class Tokens(nn.Module):
    """A linear layer per position, then interpolation to the teacher's positions, as ``resize`` has it.

    For tokens ``(B, tokens, D)`` of other numbers, and for a feature map on one side and tokens on the other: a map
    ``(B, C, H, W)`` is H * W tokens of width C.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Raises:
        ConfigurationError: neither is tokens, or one is neither tokens nor a map.

    Example:
        >>> Tokens((64, 8, 8), (197, 384))(torch.zeros(2, 64, 8, 8)).shape
        torch.Size([2, 197, 384])
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        student, teacher = tuple(student_shape), tuple(teacher_shape)
        if sorted((len(student), len(teacher))) not in ([2, 2], [2, 3]):
            expected = "tokens (B, tokens, D) to tokens, a feature map (B, C, H, W) to tokens, or tokens to a map"
            raise refuse("tokens", expected, student, teacher)
        self.linear = nn.Linear(width_of(student), width_of(teacher))
        self.positions = Positions(student, teacher)

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""
        return self.positions(feature, self.linear)


class TokenRow(nn.Module):
    """A linear layer per token, then linear interpolation along the row of tokens, for ``(B, tokens, D)``.

    As ``tokens``, but a square number of tokens is no grid: for text and sound.

    Args:
        student_shape: shape of the student's feature, without the batch.
        teacher_shape: shape of the teacher's feature, without the batch.

    Raises:
        ConfigurationError: a shape is not (tokens, D).
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        student, teacher = tuple(student_shape), tuple(teacher_shape)
        if not len(student) == len(teacher) == 2:
            raise refuse("sequence", "tokens (B, tokens, D) to tokens", student, teacher)
        self.tokens = teacher[0]
        self.linear = nn.Linear(student[1], teacher[1])

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, *student_shape)`` to ``(B, *teacher_shape)``."""
        return resize_row(self.linear(feature), self.tokens)


class Positions:
    """From the positions of one feature to those of another, with one or both of them tokens."""

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        self.from_map = len(student) == 3
        self.to = teacher
        self.grids = layouts(student, teacher)

    def __call__(self, feature: Tensor, layer: nn.Module | None = None) -> Tensor:
        """``(B, *student_shape)`` to the teacher's positions; ``layer`` maps each one of the student's."""
        tokens = feature.flatten(2).transpose(1, 2) if self.from_map else feature
        if layer is not None:
            tokens = layer(tokens)
        tokens = resize_row(tokens, self.to[0]) if self.grids is None else resize_grid(tokens, *self.grids)
        return tokens.transpose(1, 2).reshape(len(tokens), *self.to) if len(self.to) == 3 else tokens


def resize_grid(tokens: Tensor, before: Layout, after: Layout) -> Tensor:
    """Tokens ``(B, N, D)`` of one layout as those of another."""
    extra, grid = tokens[:, : before.extra], tokens[:, before.extra :]
    missing = max(after.extra - before.extra, 0)
    kept = [extra[:, : after.extra], grid.mean(dim=1, keepdim=True).expand(-1, missing, -1)]
    if before[1:] != after[1:]:
        plane = grid.transpose(1, 2).reshape(len(grid), grid.size(2), *before[1:])
        grid = resize_map(plane, after[1:]).flatten(2).transpose(1, 2)
    return torch.cat([*kept, grid], dim=1) if after.extra else grid


def resize_row(tokens: Tensor, count: int) -> Tensor:
    """Tokens ``(B, N, D)`` interpolated along the row."""
    if tokens.size(1) == count:
        return tokens
    return F.interpolate(tokens.transpose(1, 2), size=count, mode="linear", align_corners=False).transpose(1, 2)


def resize_map(feature: Tensor, size: tuple[int, ...]) -> Tensor:
    """A map ``(B, C, H, W)`` interpolated to another size."""
    if feature.shape[-2:] == size:
        return feature
    return F.interpolate(feature, size=size, mode="bilinear", align_corners=False)


def width_of(shape: tuple[int, ...]) -> int:
    """Channels of a map (C, H, W), else the last dimension."""
    return shape[0] if len(shape) == 3 else shape[-1]
