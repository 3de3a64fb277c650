"""Checks of the arguments of losses on features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kdengine.api import ConfigurationError, Schedule


def check_number(loss: str, name: str, value: Any, *, least: float = -math.inf, above: float = -math.inf) -> None:
    """Refuse what is no finite number in its range; a schedule, whose values come later, passes.

    Args:
        loss: name of the loss, for the message.
        name: of the argument.
        value: that was given.
        least: smallest value.
        above: a bound that the value must exceed.

    Raises:
        ConfigurationError: it is something else.

    Example:
        >>> check_number("ab", "margin", 1.0, above=0)
    """
    if isinstance(value, Schedule):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < least or value <= above:
        bounds = [f"of at least {least:g}"] if least > -math.inf else []
        bounds += [f"above {above:g}"] if above > -math.inf else []
        raise ConfigurationError(f"{loss}: {name} must be {' '.join(['a finite number', *bounds])}, got {value!r}")


def check_whole(loss: str, name: str, value: Any, *, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ConfigurationError: it is something else.
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
