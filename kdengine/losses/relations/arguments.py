"""Checks of the arguments of relational losses."""

from __future__ import annotations

import math
from typing import Any

from kdengine.api import ConfigurationError, Schedule


def check_number(
    loss: str,
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
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
        below: a bound that it must not reach.
        scheduled: whether a schedule, whose values come later, passes as well.

    Raises:
        ConfigurationError: it is something else.

    Example:
        >>> check_number("rkd", "angle_weight", 50.0, least=0)
    """
    if scheduled and isinstance(value, Schedule):
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < least or value <= above or value >= below:
        bounds = [f"of at least {least:g}"] if least > -math.inf else []
        bounds += [f"above {above:g}"] if above > -math.inf else []
        bounds += [f"and below {below:g}"] if below < math.inf else []
        raise ConfigurationError(f"{loss}: {name} must be {' '.join(['a finite number', *bounds])}, got {value!r}")


def check_whole(loss: str, name: str, value: Any, *, least: int) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ConfigurationError: it is something else.

    Example:
        >>> check_whole("cc", "order", 2, least=1)
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{loss}: {name} must be a whole number of at least {least}, got {value!r}")
