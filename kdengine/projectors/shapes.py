"""How the positions of a feature lie: on the grid of a feature map, or in a row of tokens that may be a grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

from kdengine.api import ConfigurationError

EXTRA = 2
"""Most tokens before those of a grid: a class token, and a distillation token (DeiT)."""


class Layout(NamedTuple):
    """Tokens that are no part of a grid, then the grid, row by row.

    Attributes:
        extra: how many tokens come before the grid.
        height: rows of the grid.
        width: columns of the grid.
    """

    extra: int
    height: int
    width: int


def layouts(student: Sequence[int], teacher: Sequence[int]) -> tuple[Layout, Layout] | None:
    """The grids of two features, of which one at least is tokens ``(tokens, D)``; the other may be a map ``(C, H, W)``.

    Tokens are a square grid, of two rows at least, behind up to two others. Beside a map they may also be as many as
    its positions.

    Returns:
        both layouts; None when both features are tokens and not both are grids.

    Raises:
        ConfigurationError: one is a map, and the other's tokens make no grid.

    Example:
        >>> layouts((197, 384), (49, 768))
        (Layout(extra=1, height=14, width=14), Layout(extra=0, height=7, width=7))
        >>> layouts((64, 7, 5), (36, 128))
        (Layout(extra=0, height=7, width=5), Layout(extra=1, height=7, width=5))
    """
    ours = _of_map(student) if len(student) == 3 else _of_tokens(student[0], teacher)
    theirs = _of_map(teacher) if len(teacher) == 3 else _of_tokens(teacher[0], student)
    if ours is not None and theirs is not None:
        return ours, theirs
    if len(student) == len(teacher):
        return None
    raise ConfigurationError(
        f"the student's feature {shown(student)} and the teacher's {shown(teacher)} are a feature map and tokens, and "
        f"the tokens are no grid: neither as many as the map has positions nor a square number, with up to {EXTRA} more"
    )


def _of_map(shape: Sequence[int]) -> Layout:
    return Layout(0, *shape[1:])


def _of_tokens(tokens: int, other: Sequence[int]) -> Layout | None:
    if len(other) == 3 and 0 <= tokens - other[1] * other[2] <= EXTRA:
        return Layout(tokens - other[1] * other[2], *other[1:])
    for extra in range(EXTRA + 1):
        side = isqrt(max(tokens - extra, 0))
        if side >= 2 and side * side == tokens - extra:
            return Layout(extra, side, side)
    return None


def shown(shape: Sequence[int]) -> str:
    """A feature's shape without its batch, for a person.

    >>> shown((16, 8, 8))
    '(B, 16, 8, 8)'
    """
    return f"({', '.join(['B', *map(str, shape)])})"


def refuse(name: str, expected: str, student: Sequence[int], teacher: Sequence[int]) -> ConfigurationError:
    """The error of a projector that cannot map one shape to the other."""
    return ConfigurationError(
        f"projector {name!r} is for {expected}; got a student feature {shown(student)} and a teacher feature "
        f"{shown(teacher)}"
    )
