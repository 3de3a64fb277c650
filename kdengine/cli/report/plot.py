"""Drawing one line chart with matplotlib."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kdengine.cli.report import formats, svg, theme
from kdengine.cli.report.records import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Formatter = Callable[[float], str]
_UNITS_PER_INCH = 72  # matplotlib's SVG counts points, so a point of font is a unit of the drawing
_TEXT = 12.5
_LETTER = 7.1  # width of a letter; the fonts of the page are not known here
_LINE_HEIGHT = 16.0
_TOP, _BOTTOM = 10.0, 26.0


@dataclass(frozen=True)
class Line:
    """A curve and how it looks.

    Attributes:
        label: what stands at its end.
        curve: its points.
        colour: a stand-in colour of the theme.
        dash: matplotlib's line style.
        strong: whether it is what the chart is about.
    """

    label: str
    curve: Curve
    colour: str
    dash: Any = "-"
    strong: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as the teacher's final value."""

    label: str
    value: float
    colour: str


@dataclass(frozen=True)
class Plot:
    """What a chart shows.

    Attributes:
        lines: the curves.
        levels: horizontal lines.
        format: how values are written.
        stacked: fill between the curves, one upon the other, from 0 to 1.
        logarithmic: whether the values' axis is.
        zero: whether the values' axis starts at zero.
        focus: whether the beginning of training may lie outside of the values' axis.
    """

    lines: Sequence[Line]
    levels: Sequence[Level] = field(default=())
    format: Formatter = formats.plain
    stacked: bool = False
    logarithmic: bool = False
    zero: bool = False
    focus: bool = False


@dataclass(frozen=True)
class Shape:
    """The size of a drawing, in CSS pixels at its natural size."""

    width: float
    height: float


@dataclass(frozen=True)
class _Frame:
    """Where the axes lie in a drawing: room for the values on the left and the curves' names on the right."""

    width: float
    height: float
    left: float
    right: float

    @property
    def inner_width(self) -> float:
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> float:
        return self.height - _TOP - _BOTTOM

    @property
    def fractions(self) -> tuple[float, float, float, float]:
        across, up = self.inner_width / self.width, self.inner_height / self.height
        return self.left / self.width, _BOTTOM / self.height, across, up


def draw(plot: Plot, shape: Shape, name: str, description: str) -> str:
    """Draw a chart as an SVG element for the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": _TEXT,
        "path.simplify": True,
        "axes.unicode_minus": True,
    }
    plot = _with_short_labels(plot, int((shape.width / 3 - 14.0) / _LETTER))
    longest = max(
        len(label) for label in [*(line.label for line in plot.lines), *(level.label for level in plot.levels)]
    )
    frame = _Frame(shape.width, shape.height, left=50.0, right=max(54.0, 14.0 + _LETTER * longest))
    with mpl.rc_context(settings):
        figure = Figure(figsize=(shape.width / _UNITS_PER_INCH, shape.height / _UNITS_PER_INCH))
        figure.patch.set_visible(False)
        axes = figure.add_axes(frame.fractions)
        axes.patch.set_visible(False)
        _draw_stack(axes, plot) if plot.stacked else _draw_lines(axes, plot)
        _dress(axes, plot, frame)
        _label_ends(axes, plot, frame)
        written = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has the fonts, not matplotlib
            figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return svg.inline(written.getvalue(), name, description)


def _with_short_labels(plot: Plot, most: int) -> Plot:
    """The plot with names that leave the curves two thirds of the width."""
    lines = [replace(line, label=shortened(line.label, most)) for line in plot.lines]
    return replace(plot, lines=lines, levels=[replace(at, label=shortened(at.label, most)) for at in plot.levels])


def shortened(label: str, most: int) -> str:
    """A label of at most so many letters.

    >>> shortened("kd.temperature", 6)
    'kd.te…'
    """
    return label if len(label) <= most else label[: most - 1] + "…"


def _draw_lines(axes: Axes, plot: Plot) -> None:
    for level in plot.levels:
        axes.axhline(level.value, color=level.colour, linewidth=1.6, linestyle=(0, (5, 3)), zorder=2)
    for line in plot.lines:
        points, order = line.curve, 4 if line.strong else 3
        if points.has_band:
            axes.fill_between(points.steps, points.low, points.high, color=line.colour, alpha=0.16, linewidth=0)
        marker: dict[str, Any] = {"marker": "o", "markersize": 4.0} if len(points.steps) == 1 else {}
        axes.plot(
            points.steps,
            points.means,
            color=line.colour,
            linestyle=line.dash,
            linewidth=2.4 if line.strong else 1.8,
            solid_joinstyle="round",
            solid_capstyle="round",
            zorder=order,
            **marker,
        )


def _draw_stack(axes: Axes, plot: Plot) -> None:
    steps = plot.lines[0].curve.steps
    floor = [0.0] * len(steps)
    for line in plot.lines:
        top = [low + mean for low, mean in zip(floor, line.curve.means, strict=True)]
        axes.fill_between(steps, floor, top, color=line.colour, alpha=0.8, linewidth=0, zorder=2)
        axes.plot(steps, top, color=theme.colour("card"), linewidth=1.5, zorder=3)
        floor = top
    axes.set_ylim(0.0, 1.0)


def _dress(axes: Axes, plot: Plot, frame: _Frame) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for side in axes.spines.values():
        side.set_visible(False)
    axes.spines["bottom"].set(visible=True, color=theme.colour("rule"), linewidth=1.0)
    axes.tick_params(which="both", length=0, pad=6, labelcolor=theme.colour("muted"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_tick_params(which="both", bottom=False, left=False)
    if plot.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
        axes.yaxis.set_minor_locator(NullLocator())
    elif not plot.stacked:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if plot.focus:
        _focus(axes, plot)
    if plot.zero:
        axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: plot.format(y)))
    first, last = _step_range(plot)
    axes.set_xlim(first, last)
    _mark_steps(axes, first, last, frame)
    axes.grid(axis="y", color=theme.colour("rule"), linewidth=0.8)
    axes.set_axisbelow(True)


def _mark_steps(axes: Axes, first: float, last: float, frame: _Frame) -> None:
    """Round steps along the axis, and the last one with its unit."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    locator = MaxNLocator(nbins=max(3, int(frame.inner_width / 90)), steps=[1, 2, 2.5, 5, 10], integer=True)
    room = last - 64.0 / frame.inner_width * (last - first)
    axes.set_xticks([float(tick) for tick in locator.tick_values(first, last) if first <= tick <= room])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: formats.count(round(x))))
    axes.text(
        1.0 - 16.0 / frame.inner_width,
        -6.0 / frame.inner_height,
        f"{formats.count(round(last))} steps",
        transform=axes.transAxes,
        color=theme.colour("muted"),
        verticalalignment="top",
    )


def _focus(axes: Axes, plot: Plot) -> None:
    """Leave the first tenth of training out of the values' range, where curves come from far away."""
    first, last = _step_range(plot)
    start = first + (last - first) / 10
    seen = [level.value for level in plot.levels]
    for line in plot.lines:
        points = zip(line.curve.steps, line.curve.low, line.curve.high, strict=True)
        seen += [end for step, low, high in points if step >= start for end in (low, high)]
    margin = 0.05 * (max(seen) - min(seen))
    if margin > 0:
        axes.set_ylim(min(seen) - margin, max(seen) + margin)


def _step_range(plot: Plot) -> tuple[float, float]:
    first = min((line.curve.steps[0] for line in plot.lines), default=0.0)
    last = max((line.curve.steps[-1] for line in plot.lines), default=1.0)
    if first == last:
        return first - 1.0, last + 1.0
    return (0.0 if first < 0.1 * last and not plot.stacked else first), last


def _label_ends(axes: Axes, plot: Plot, frame: _Frame) -> None:
    """Name each curve at its end, in its colour, no name upon another."""
    ends = [(level.value, level.label, level.colour) for level in plot.levels]
    if plot.stacked:
        floor = 0.0
        for line in plot.lines:
            ends.append((floor + line.curve.last / 2, line.label, line.colour))
            floor += line.curve.last
    else:
        ends += [(line.curve.last, line.label, line.colour) for line in plot.lines]
    height = frame.inner_height
    fractions = [float(axes.transAxes.inverted().transform(axes.transData.transform((0.0, y)))[1]) for y, _, _ in ends]
    places = spread_apart([fraction * height for fraction in fractions], _LINE_HEIGHT, -4.0, height + 4.0)
    for (_, label, colour), place in zip(ends, places, strict=True):
        axes.text(
            1.0 + 8.0 / frame.inner_width,
            place / height,
            label,
            transform=axes.transAxes,
            color=colour,
            verticalalignment="center",
            parse_math=False,
        )


def spread_apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Move places up, and then down from the upper bound, until neighbours are at least ``least`` apart.

    >>> spread_apart([5.0, 1.0, 1.0], 10.0, 0.0, 100.0)
    [21.0, 1.0, 11.0]
    >>> spread_apart([99.0, 98.0], 10.0, 0.0, 100.0)
    [100.0, 90.0]
    """
    order = sorted(range(len(places)), key=lambda at: places[at])
    moved = [max(places[at], low) for at in order]
    for upper in range(1, len(moved)):
        moved[upper] = max(moved[upper], moved[upper - 1] + least)
    ceiling = high
    for at in range(len(moved) - 1, -1, -1):
        moved[at] = min(moved[at], ceiling)
        ceiling = moved[at] - least
    result = [0.0] * len(places)
    for at, place in zip(order, moved, strict=True):
        result[at] = place
    return result


def spans_decades(lines: Sequence[Line], factor: float = 50.0) -> bool:
    """Whether positive values range so far that a linear axis hides most of them."""
    means = [mean for line in lines for mean in line.curve.means]
    return bool(means) and min(means) > 0 and max(means) / min(means) > factor and math.isfinite(max(means))
