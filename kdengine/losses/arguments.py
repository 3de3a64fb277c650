"""Checks of the arguments that losses are made with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kdengine.api import ConfigurationError, Schedule


def check_number(
    loss: str,
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    scheduled: bool = True,
) -> None:
    """Refuse what is no finite number in its range.

    Args:
        loss: name of the loss, for the message.
        name: of the argument.
        value: that was given.
        least: smallest value.
        above: a bound that the value must exceed.
        most: largest value.
        below: a bound that it must not reach.
        scheduled: whether a schedule, whose values come later, passes as well.

    Raises:
        ConfigurationError: it is something else.

    Example:
        >>> check_number("rkd", "angle_weight", 50.0, least=0)
        >>> check_number("kd", "temperature", 0, above=0)
        Traceback (most recent call last):
        kdengine.api.errors.ConfigurationError: kd: temperature must be a finite number above 0, got 0
    """
    if scheduled and isinstance(value, Schedule):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and least <= value <= most and above < value < below:
        return
    lower = {"of at least": least, "above": above}
    upper = {"at most": most, "below": below}
    low = [f"{word} {bound:g}" for word, bound in lower.items() if bound > -math.inf]
    high = [f"{word} {bound:g}" for word, bound in upper.items() if bound < math.inf]
    expected = " ".join(["a finite number", " and ".join(low + high)]).strip()
    raise ConfigurationError(f"{loss}: {name} must be {expected}, got {value!r}")


def check_whole(loss: str, name: str, value: Any, *, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ConfigurationError: it is something else.

    Example:
        >>> check_whole("cc", "order", 2, least=1)
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{loss}: {name} must be a whole number of at least {least}, got {value!r}")


def check_choice(loss: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ConfigurationError: it is something else.

    Example:
        >>> check_choice("factor", "p", 1, (1, 2))
    """
    if value not in choices:
        *others, last = map(repr, choices)
        raise ConfigurationError(f"{loss}: {name} must be {', '.join(others)} or {last}, got {value!r}")
