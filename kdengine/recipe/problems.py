"""What is wrong with a recipe: every problem at once, each with its key, value and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdengine.api import ConfigurationError
from kdengine.recipe.lines import find_line

MISSING = object()
"""Stands for the value of a key that is not there."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: keys from the top of the recipe.
        message: what was expected, and what to do.
        value: what came; ``MISSING`` when the key is absent.
    """

    path: tuple[str, ...]
    message: str
    value: Any = MISSING

    def describe(self, line: int | None) -> str:
        """A line for a person; what a message says in further lines is indented."""
        where = f"line {line}: " if line else ""
        came = "" if self.value is MISSING else f" = {_short(self.value)}"
        return f"{where}{'.'.join(self.path)}{came}: {self.message}".replace("\n", "\n    ")


class RecipeError(ConfigurationError):
    """A recipe that cannot be run; the message lists every problem.

    Attributes:
        problems: the problems, in the order of the file where it is known.
    """

    def __init__(self, source: str, problems: Sequence[Problem], text: str = "") -> None:
        placed = [(find_line(text, problem.path) if text else None, problem) for problem in problems]
        placed.sort(key=lambda item: (item[0] is None, item[0] or 0))
        count = f"{len(placed)} problem{'s' if len(placed) != 1 else ''}"
        lines = [f"{source}: {count}", *(f"  {problem.describe(line)}" for line, problem in placed)]
        super().__init__("\n".join(lines))
        self.problems = [problem for _, problem in placed]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
