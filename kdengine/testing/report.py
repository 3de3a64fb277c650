"""How a check says what failed and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


class CheckFailed(AssertionError):  # noqa: N818 - what pytest prints in front of the message
    """The kit's one kind of error.

    Attributes:
        said: the message without the component's name in front.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.said = message


def fail(name: str, message: str, cause: BaseException | None = None) -> NoReturn:
    """Raise the kit's one kind of error."""
    raise CheckFailed(name, message) from cause


def name_of(factory: Callable[..., Any]) -> str:
    """What a component is called in messages."""
    return getattr(factory, "__name__", type(factory).__name__)


def require(condition: bool, name: str, message: str) -> None:
    """Fail unless a condition holds."""
    if not condition:
        fail(name, message)


def require_finite(name: str, what: str, values: Sequence[Tensor]) -> None:
    """Fail on NaN or infinity."""
    for value in values:
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            fail(name, f"{what}: {bad} of {value.numel()} values are not finite")
