r"""What goes wrong between what is typed and what TOML reads: backslashes, typographic quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from kdengine.recipe.problems import Problem

PATH_KEYS: Final = frozenset({"root", "path", "file", "folder", "dir", "directory", "checkpoint"})
_LINE: Final = re.compile(r"\(at line (\d+), column \d+\)")
_BACKSLASH: Final = re.compile(r'"[^"\n]*\\[^"\n]*"')
_QUOTES: Final = "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{DOUBLE LOW-9 QUOTATION MARK}" + (
    "\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
)
_SPACES: Final = "\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}"
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/\x00-\x1f]|\\\\")
_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_ADVICE: Final = (
    r"in double quotes a backslash begins an escape (\t is a tab); write a path in single quotes, as in 'C:\data', "
    r'with forward slashes, or with doubled backslashes, "C:\\data"'
)


def explain(error: str, text: str) -> str | None:
    r"""What to write instead, where a TOML error comes from one of these; None where it does not.

    >>> explain("Invalid hex value (at line 1, column 12)", 'root = "C:\\Users"') is None
    False
    """
    found = _LINE.search(error)
    lines = text.splitlines()
    if found is None or not 0 < int(found[1]) <= len(lines):
        return None
    line = lines[int(found[1]) - 1]
    if any(quote in line for quote in _QUOTES):
        return "typographic quotes are no quotes in TOML; write \"...\" or '...'"
    if any(space in line for space in _SPACES):
        return "the line holds a space that is no plain one, as copied from a web page; type it again"
    return _ADVICE if _BACKSLASH.search(line) else None


def find_escaped(tree: Any, path: tuple[str, ...] = ()) -> Iterator[Problem]:
    r"""Paths in which TOML has read ``\t`` or ``\n`` as a tab or a line break: ``"C:\new"`` means another folder.

    >>> [problem.path for problem in find_escaped({"data": {"root": "C:\new", "use": "folder"}})]
    [('data', 'root')]
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from find_escaped(value, (*path, key))
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from find_escaped(value, (*path, str(position)))
    elif isinstance(tree, str) and _CONTROL.search(tree) and _is_path(tree, path):
        yield Problem(path, f"a path with a control character: {_ADVICE}", tree)


def _is_path(value: str, path: tuple[str, ...]) -> bool:
    return _DRIVE.match(value) is not None or path[-1] in PATH_KEYS or path[0] == "plugins"
