"""What every command has in common: its paths as they were meant, and a word when a signal ends it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from kdengine import _interrupts as interrupts
from kdengine._paths import expanded
from kdengine.cli.verdict import CommandInterruptedError


def prepared(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its paths with ``~`` expanded, and let a signal leave it as an exception that typer passes on."""

    @wraps(command)
    def call(**kwargs: Any) -> None:
        try:
            command(**{name: at_home(value) for name, value in kwargs.items()})
        except (KeyboardInterrupt, interrupts.Terminated) as error:
            raise CommandInterruptedError(error) from error

    return call


def at_home(value: Any) -> Any:
    """An argument with ``~`` expanded in it, where it is a path or several: no shell does that in ``--out=~/run``."""
    if isinstance(value, list):
        return [at_home(item) for item in value]
    return expanded(value) if isinstance(value, Path) else value
