"""On which line of a TOML text a key stands."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from typing import Any

_HEADER = re.compile(r"^\s*(\[\[?)([^\[\]]+)\]\]?\s*(?:#.*)?$")
_LONG_STRING = re.compile(r"(\"{3}|'{3}).*?\1", re.DOTALL)
_KEY = r"(?:[\w-]+|\"[^\"]*\"|'[^']*')"
KEY_PATH = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
"""A dotted key, as a pattern."""
_ASSIGNMENT = re.compile(rf"^\s*({KEY_PATH})\s*=")


def find_line(text: str, path: tuple[str, ...]) -> int | None:
    r"""The line (from 1) of the deepest part of ``path`` that the text names; None when it names none.

    A key inside an inline table is found on the line of its table; ``[[list]]`` counts its tables from 0.

    >>> find_line("a = 1\n[b]\nc = { d = 2 }", ("b", "c", "d"))
    3
    """
    best: tuple[int, int] | None = None
    table: tuple[str, ...] = ()
    listed: Counter[tuple[str, ...]] = Counter()
    for number, line in enumerate(_LONG_STRING.sub(_blank, text).splitlines(), start=1):
        if header := _HEADER.match(line):
            named = keys_of(header[2])
            table = (*named, str(listed[named])) if header[1] == "[[" else named
            listed[named] += 1
            named = table
        elif assignment := _ASSIGNMENT.match(line):
            named = (*table, *keys_of(assignment[1]))
        else:
            continue
        if path[: len(named)] == named and (best is None or len(named) > best[0]):
            best = (len(named), number)
    return None if best is None else best[1]


def _blank(found: re.Match[str]) -> str:
    """A string of several lines without its content, which may look like keys."""
    return "''" + "\n" * found[0].count("\n")


def keys_of(dotted: str) -> tuple[str, ...]:
    """The parts of a dotted key, as TOML itself reads them."""
    value: Any
    try:
        value = tomllib.loads(f"{dotted.strip()} = 0")
    except tomllib.TOMLDecodeError:
        return (dotted.strip(),)
    keys = []
    while isinstance(value, dict):
        key, value = next(iter(value.items()))
        keys.append(key)
    return tuple(keys)
