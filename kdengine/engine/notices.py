"""What an engine says once: a doubt about what it was given, which may be meant."""

from __future__ import annotations

from kdengine.api.errors import warn


class Notices:
    """Warn once of each thing, however many steps, batches and fits meet it."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def once(self, message: str) -> None:
        """Warn of something, unless this engine has done so before."""
        if message not in self._given:
            self._given.add(message)
            warn(message)
