"""How a check says what failed and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


def fail(name: str, message: str, cause: BaseException | None = None) -> NoReturn:
    """Raise the kit's one kind of error."""
    raise AssertionError(f"{name}: {message}") from cause


def name_of(factory: Callable[..., Any]) -> str:
    """What a component is called in messages."""
    return getattr(factory, "__name__", type(factory).__name__)


def require(condition: bool, name: str, message: str) -> None:
    """Fail unless a condition holds."""
    if not condition:
        fail(name, message)


def require_close(name: str, what: str, got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Fail when two lists of tensors differ by more than a tolerance relative to the larger of 1 and their size."""
    for one, other in zip(got, expected, strict=True):
        if one.shape != other.shape:
            fail(name, f"{what} has shape {tuple(one.shape)}, expected {tuple(other.shape)}")
        if not one.numel():
            continue
        worst = float((one.detach() - other.detach()).abs().max())
        size = max(1.0, float(other.detach().abs().max()))
        if not worst <= tolerance * size:
            fail(name, f"{what} differs by {worst:.3g}; the tolerance is {tolerance * size:.3g}")


def require_finite(name: str, what: str, values: Sequence[Tensor]) -> None:
    """Fail on NaN or infinity."""
    for value in values:
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            fail(name, f"{what}: {bad} of {value.numel()} values are not finite")
