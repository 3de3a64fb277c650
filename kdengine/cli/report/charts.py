"""Which charts a run gets, and what each says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from kdengine.cli.report import formats, theme
from kdengine.cli.report.plot import Formatter, Level, Line, Plot, Shape, draw, shortened, spans_decades
from kdengine.cli.report.reading import Report
from kdengine.cli.report.records import Curve, curve, mean_shares

WIDE = Shape(960, 330)
TALL = Shape(400, 290)
SMALL = Shape(460, 240)
_MOST_METRICS = 5
_MOST_SCHEDULES = 4
ALONE, DISTILLED, TEACHER = "alone", "distilled", "teacher"


@dataclass(frozen=True)
class Chart:
    """A drawing and its words.

    Attributes:
        title: what it shows.
        note: one sentence on how to read it; may be empty.
        drawings: the SVG elements: one for every width, or a wide and a tall one.
    """

    title: str
    note: str
    drawings: list[str]


class Drawer:
    """Draws charts, each with a name of its own on the page."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def chart(self, title: str, note: str, plot: Plot, shapes: Sequence[Shape] = (SMALL,)) -> Chart:
        """Draw a chart in one or more shapes."""
        description = f"{title}, by optimizer step. {_spoken(plot)}"
        return Chart(title, note, [draw(plot, shape, f"c{next(self._numbers)}", description) for shape in shapes])


def run_charts(run: Report, drawer: Drawer) -> tuple[Chart | None, list[Chart]]:
    """The chart of the monitored metric, and the smaller ones."""
    hero = metric_chart(run, run.monitor, drawer, (WIDE, TALL)) if run.monitor else None
    return hero, [chart for chart in _small_charts(run, drawer) if chart is not None]


def metric_chart(run: Report, metric: str, drawer: Drawer, shapes: Sequence[Shape] = (SMALL,)) -> Chart | None:
    """A metric over training: alone, distilled, and where the teacher stands."""
    lines = _pair(run, metric)
    if not lines:
        return None
    taught = run.teacher.metrics.get(metric) if run.teacher else None
    # a teacher agrees with itself; a line at 100 % would say nothing
    levels = []
    if taught is not None and metric != "agreement":
        levels.append(Level(_valued(TEACHER, metric, taught.mean), taught.mean, theme.colour("teacher")))
    title = f"{formats.metric_name(metric)} on the test set"
    note = "Lines are means over seeds, bands one standard deviation." if _banded(lines) else ""
    if metric == "agreement":
        title, note = (
            "agreement with the teacher",
            "The part of test examples on which student and teacher say the same.",
        )
    elif metric == "calibration_error":
        note = "How far confidence is from accuracy; lower is better."
    return drawer.chart(
        title[0].upper() + title[1:], note, Plot(lines, levels, _axis_format(metric), focus=True), shapes
    )


def comparison_charts(runs: Sequence[Report], names: Sequence[str], drawer: Drawer) -> list[Chart]:
    """Every metric that at least two runs measured, one line for each run."""
    metrics = dict.fromkeys(metric for run in runs for metric in ([run.monitor] if run.monitor else []))
    metrics.update(dict.fromkeys(metric for run in runs for metric in run.keys.metrics))
    charts: list[Chart] = []
    for metric in metrics:
        lines = [
            Line(name, line, theme.series(at), theme.series_dash(at), strong=True)
            for at, (run, name) in enumerate(zip(runs, names, strict=True))
            if (line := curve(run.student_records, "evaluate", metric)) is not None
        ]
        if len(lines) > 1:
            title = f"{formats.metric_name(metric)} on the test set"
            shapes = (SMALL,) if charts else (WIDE, TALL)
            shown = Plot(
                [_shortened(line) for line in lines], _common_teacher(runs, metric), _axis_format(metric), focus=True
            )
            note = "The distilled students; bands are one standard deviation over seeds." if _banded(lines) else ""
            charts.append(drawer.chart(title[0].upper() + title[1:], note, shown, shapes))
    return charts[: _MOST_METRICS + 1]


def _common_teacher(runs: Sequence[Report], metric: str) -> list[Level]:
    """The teacher's level, where all runs have learnt from one teacher."""
    taught = {run.teacher.metrics.get(metric) if run.teacher else None for run in runs}
    level = taught.pop()
    if taught or level is None or metric == "agreement":
        return []
    return [Level(_valued(TEACHER, metric, level.mean), level.mean, theme.colour("teacher"))]


def _small_charts(run: Report, drawer: Drawer) -> Iterator[Chart | None]:
    yield _loss_chart(run, drawer)
    yield _share_chart(run, drawer)
    others = [metric for metric in run.keys.metrics if metric != run.monitor]
    for metric in others[:_MOST_METRICS]:
        yield metric_chart(run, metric, drawer)
    for name, line in _schedules(run)[:_MOST_SCHEDULES]:
        yield drawer.chart(_schedule_title(name), "", _schedule(line))
    rate = curve(run.student_records, "train", "lr")
    if rate is not None and rate.varies:
        yield drawer.chart("Learning rate", "", _schedule(rate))


def _loss_chart(run: Report, drawer: Drawer) -> Chart | None:
    lines = list(_loss_lines(run))
    if not lines:
        return None
    logarithmic = spans_decades(lines)
    note = "The total is the weighted sum of the terms; the terms are shown before weighting."
    if not run.keys.terms:
        note = ""
    if logarithmic:
        note = f"{note} Logarithmic axis.".strip()
    return drawer.chart("Training loss", note, Plot(lines, logarithmic=logarithmic, zero=not logarithmic))


def _loss_lines(run: Report) -> Iterator[Line]:
    total = curve(run.student_records, "train", "loss")
    if total is not None:
        yield Line("total", total, theme.colour("ink"), strong=True)
    for at, term in enumerate(run.keys.terms):
        line = curve(run.student_records, "train", term)
        if line is not None and not (len(run.keys.terms) == 1 and total is not None and line.means == total.means):
            yield Line(_short(term), line, theme.series(at), theme.series_dash(at))
    alone = curve(run.baseline_records, "train", "loss")
    if alone is not None:
        yield Line("loss alone", alone, theme.colour("alone"), (0, (4, 2)))


def _share_chart(run: Report, drawer: Drawer) -> Chart | None:
    shares = mean_shares(run.student_records, run.keys.shares)
    if len(shares) < 2 or len(next(iter(shares.values())).steps) < 2:
        return None
    order = {term: at for at, term in enumerate(run.keys.terms)}
    lines = [
        Line(_short(term), line, theme.series(order.get(term, at))) for at, (term, line) in enumerate(shares.items())
    ]
    note = (
        "How hard each weighted term pulls at the student: the norm of its gradient, as a part of the sum of all norms."
    )
    return drawer.chart("Share of the gradient", note, Plot(lines, format=_whole_percent, stacked=True))


def _schedules(run: Report) -> list[tuple[str, Curve]]:
    found = ((name, curve(run.student_records, "train", name)) for name in run.keys.scalars)
    return [(name, line) for name, line in found if line is not None and line.varies]


def _schedule_title(name: str) -> str:
    label, _, argument = name.rpartition(".")
    return f"Weight of {argument}" if label == "weights" else f"Schedule of {name}"


def _schedule(line: Curve) -> Plot:
    label = formats.plain(line.last)
    return Plot([Line(label, line, theme.colour("distilled"), strong=True)], zero=min(line.means) >= 0)


def _pair(run: Report, metric: str) -> list[Line]:
    alone = curve(run.baseline_records, "evaluate", metric)
    distilled = curve(run.student_records, "evaluate", metric)
    lines = []
    if alone is not None:
        lines.append(Line(_valued(ALONE, metric, alone.last), alone, theme.colour("alone"), (0, (4, 2))))
    if distilled is not None:
        lines.append(
            Line(_valued(DISTILLED, metric, distilled.last), distilled, theme.colour("distilled"), strong=True)
        )
    return lines if any(len(line.curve.steps) > 1 for line in lines) else []


def _valued(label: str, metric: str, value: float) -> str:
    return f"{label} {formats.measure(metric, value)}"


def _banded(lines: Sequence[Line]) -> bool:
    return any(line.curve.has_band for line in lines)


def _axis_format(metric: str) -> Formatter:
    return _whole_percent if formats.is_share(metric) else formats.plain


def _whole_percent(number: float) -> str:
    return formats.whole_percent(number)


def _short(label: str, most: int = 14) -> str:
    return shortened(label, most)


def _shortened(line: Line) -> Line:
    return Line(_short(line.label), line.curve, line.colour, line.dash, line.strong)


def _spoken(plot: Plot) -> str:
    ends = [(line.label, line.curve.last) for line in plot.lines] + [(at.label, at.value) for at in plot.levels]
    said = (label if any(map(str.isdigit, label)) else f"{label} {plot.format(end)}" for label, end in ends)
    return "At the end: " + ", ".join(said) + "."
