"""Which attributes of an object are hooks: the marker that ``@kdengine.hookimpl`` leaves."""

from __future__ import annotations

import inspect
import types
from typing import Any, Final

from kdengine.api.hooks import CALLBACKS, CONTRIBUTIONS, PROJECT

HOOKS: Final = frozenset(CONTRIBUTIONS + CALLBACKS)
MARKER: Final = f"{PROJECT}_impl"
FUNCTIONS: Final = (types.FunctionType, types.MethodType, staticmethod, classmethod)


def marker(value: object) -> dict[str, Any] | None:
    """The options that a hookimpl marker left on a function, or None."""
    if isinstance(value, type) or not (isinstance(value, FUNCTIONS) or callable(value)):
        return None
    for holder in (value, getattr(value, "__func__", None)):
        options = inspect.getattr_static(holder, MARKER, None) if holder is not None else None
        if isinstance(options, dict):
            return options
    return None
