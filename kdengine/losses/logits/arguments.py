"""Checks of the arguments that losses are made with."""

from __future__ import annotations

import math
from typing import Any

from kdengine.api import ConfigurationError, Schedule


def positive(loss: str, name: str, value: Any) -> Any:
    """A number above 0, or a schedule, whose values are known only while training.

    Raises:
        ConfigurationError: it is neither.

    Example:
        >>> positive("kd", "temperature", 4.0)
        4.0
        >>> positive("kd", "temperature", 0)
        Traceback (most recent call last):
        kdengine.api.errors.ConfigurationError: the loss kd needs a temperature above 0, got 0
    """
    return _checked(loss, name, value, "above 0", lambda number: number > 0)


def not_negative(loss: str, name: str, value: Any) -> Any:
    """A number of at least 0, or a schedule."""
    return _checked(loss, name, value, "of at least 0", lambda number: number >= 0)


def fraction(loss: str, name: str, value: Any) -> Any:
    """A number from 0 to 1, or a schedule."""
    return _checked(loss, name, value, "from 0 to 1", lambda number: 0 <= number <= 1)


def between(loss: str, name: str, value: Any) -> Any:
    """A number strictly between 0 and 1, or a schedule."""
    return _checked(loss, name, value, "strictly between 0 and 1", lambda number: 0 < number < 1)


def _checked(loss: str, name: str, value: Any, expected: str, holds: Any) -> Any:
    if isinstance(value, Schedule):
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not holds(value):
        article = "an" if name[0] in "aeiou" else "a"
        raise ConfigurationError(f"the loss {loss} needs {article} {name} {expected}, got {value!r}")
    return value
