"""The colours of the report: stand-ins that matplotlib draws with, and the CSS variables they become.

The page defines the variables twice, for light and for dark; so one drawing serves both.
"""

from __future__ import annotations

from typing import Final

# a colour for each meaning, unlikely to be drawn otherwise
STAND_INS: Final = {
    "#010201": "--teacher",
    "#010202": "--alone",
    "#010203": "--distilled",
    "#010204": "--ink",
    "#010205": "--muted",
    "#010206": "--rule",
    "#010207": "--card",
    "#010301": "--series-1",
    "#010302": "--series-2",
    "#010303": "--series-3",
    "#010304": "--series-4",
    "#010305": "--series-5",
    "#010306": "--series-6",
}
_BY_NAME: Final = {variable.removeprefix("--"): colour for colour, variable in STAND_INS.items()}
SERIES: Final = 6
DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


def colour(name: str) -> str:
    """The stand-in for a colour by its meaning, such as ``teacher`` or ``rule``."""
    return _BY_NAME[name]


def series(position: int) -> str:
    """The stand-in for the n-th of several equal things; colours repeat after six, with another dash."""
    return _BY_NAME[f"series-{position % SERIES + 1}"]


def series_dash(position: int) -> str | tuple[int, tuple[float, ...]]:
    """The line style for the n-th of several equal things."""
    return DASHES[position // SERIES % len(DASHES)]
