"""The numbers of a schedule."""

from __future__ import annotations

import math
from typing import Any

from kdengine.api import ConfigurationError


def finite(name: str, value: Any) -> float:
    """Return a number as a float.

    >>> finite("start", 4)
    4.0

    Raises:
        ConfigurationError: it is none, or not finite: a loss would be NaN in the step that reaches it.
    """
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"expected {name} to be a finite number, got {value!r}")
    return number
