"""What an engine says once: a doubt about what it was given, which may be meant."""

from __future__ import annotations

import sys
import warnings

INNER = ("kdengine", "torch", "contextlib", "threading")
"""Packages whose frames lie between the line of the user and the doubt."""


class Notices:
    """Warn once of each thing, however many steps, batches and fits meet it."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def once(self, message: str) -> None:
        """Warn of something, unless this engine has done so before; the warning names the line outside of kdengine."""
        if message not in self._given:
            self._given.add(message)
            warnings.warn(message, UserWarning, stacklevel=_outside())


def _outside() -> int:
    """The stack level, for the caller, of the first frame that is of none of the inner packages."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in INNER:
        level, frame = level + 1, frame.f_back
    return level
