"""What a run's files hold that no page can show: left out where they are read, and named.

Everything behind this point may calculate, format and draw without a look at whether its numbers can be numbers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from kdengine._untrusted import shown

LARGEST: Final = 1e100
"""Beyond it a number cannot be squared or summed over seeds; no loss or metric comes near."""
LARGEST_COUNT: Final = 10**15
LONGEST_TEXT: Final = 2000
DEEPEST: Final = 8
_MOST: Final = 20
_LOST: Final = "\N{REPLACEMENT CHARACTER}"


class Damage:
    """The values that were left out, each with its place.

    Attributes:
        notes: the first of them in words.
        count: how many there are.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.count = 0

    def note(self, place: str, why: str) -> None:
        """Remember something that cannot be shown."""
        self.count += 1
        if len(self.notes) < _MOST:
            self.notes.append(f"{text(place)}: {text(why)}")

    def lines(self) -> list[str]:
        """What there is to say, a line each."""
        more = self.count - len(self.notes)
        return [*self.notes, *([f"and {more} more"] if more else [])]


def cleaned(value: Any, damage: Damage, place: str, depth: int = 0) -> Any:
    """Read JSON again, without what cannot be shown: None in its place, and a note.

    What a writer says on purpose is no damage: null, and text such as ``"NaN"`` for a number that JSON lacks.

    >>> found = Damage()
    >>> cleaned({"top1": 1e308, "name": "kd"}, found, "summary.json")
    {'top1': None, 'name': 'kd'}
    >>> found.notes
    ['summary.json: top1 = 1e+308']
    """
    if isinstance(value, float):
        return _number(value, damage, place)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= LARGEST else _number(value, damage, place)
    if isinstance(value, str):
        return text(value)
    if not isinstance(value, Mapping | list):
        return value
    if depth == DEEPEST:
        damage.note(place, "it is nested too deeply")
        return None
    if isinstance(value, list):
        return [cleaned(item, damage, place, depth + 1) for item in value]
    return {text(key): cleaned(item, damage, _inside(place, key, depth), depth + 1) for key, item in value.items()}


def counted(table: Mapping[str, Any], key: str, damage: Damage, place: str, least: int = 0) -> int | None:
    """A whole number of things, or None where it is absent, or cannot be one."""
    value = table.get(key)
    if value is None or isinstance(value, str):
        return None
    whole = type(value) in (int, float) and value == int(value)
    if not whole or not least <= value <= LARGEST_COUNT:
        damage.note(place, f"{key} = {shown(value)}")
        return None
    return int(value)


def text(raw: str) -> str:
    r"""A text as a page can hold it: without halves of surrogate pairs and control characters, and not without end.

    >>> text("a\ud800b\x00") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    True
    """
    short = raw if len(raw) <= LONGEST_TEXT else f"{raw[:LONGEST_TEXT]}…"
    return "".join(_LOST if _is_lost(letter) else letter for letter in short)


def _is_lost(letter: str) -> bool:
    """Whether a page cannot hold it: a control character, half a surrogate pair, or what Unicode leaves open."""
    return letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cs", "Cn")


def _number(value: float, damage: Damage, place: str) -> float | None:
    if abs(value) <= LARGEST:
        return value
    if value != value:  # NaN: undefined, as a logger of one's own may say it
        return None
    where, equals, key = place.rpartition(": ")
    damage.note(where or place, f"{key} = {shown(value)}" if equals else shown(value))
    return None


def _inside(place: str, key: str, depth: int) -> str:
    return f"{place}{'.' if depth else ': '}{text(key)}"
