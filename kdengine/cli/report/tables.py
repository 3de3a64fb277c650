"""The tables of the page, as text ready to be set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdengine.cli.report import formats
from kdengine.cli.report.headline import Outcome, outcome
from kdengine.cli.report.reading import Model, Report

DASH = "\N{EN DASH}"
LABELS = {"teacher": "Teacher", "alone": "Student alone", "distilled": "Student distilled"}


@dataclass(frozen=True)
class Row:
    """One model of the results.

    Attributes:
        role: ``teacher``, ``alone``, ``distilled`` or ``change``.
        label: the role in words.
        name: what the model is.
        cells: one text for each metric.
        parameters: the model's size; empty where unknown.
        ratio: that size against the teacher's; may be empty.
        seconds: training time; empty where unknown.
    """

    role: str
    label: str
    name: str
    cells: list[str]
    parameters: str = ""
    ratio: str = ""
    seconds: str = ""


@dataclass(frozen=True)
class Tile:
    """A large number at the top, and where it lies between the worst and the best shown."""

    role: str
    label: str
    value: str
    spread: str
    detail: str
    place: float


def models(run: Report) -> dict[str, Model]:
    """The models of a run by role, in the order in which they are shown."""
    found = {"teacher": run.teacher, "alone": run.baseline, "distilled": run.student}
    return {role: model for role, model in found.items() if model is not None}


def metric_names(run: Report) -> list[str]:
    """Every metric of any model, the monitored one first."""
    names = dict.fromkeys([run.monitor] if run.monitor else [])
    for model in models(run).values():
        names.update(dict.fromkeys(model.metrics))
    return list(names)


def results(run: Report) -> list[Row]:
    """Teacher, student alone, student distilled, and what distillation changed."""
    metrics = metric_names(run)
    rows = [_row(run, role, model, metrics) for role, model in models(run).items()]
    if run.baseline is not None and set(run.baseline.metrics) & set(run.student.metrics):
        rows.append(Row("change", "Change", "distilled against alone", [_change(run, metric) for metric in metrics]))
    return rows


def tiles(run: Report, result: Outcome) -> list[Tile]:
    """The monitored metric of each model, as large numbers."""
    order = ("alone", "distilled", "teacher")
    found = {
        role: model.metrics[result.metric] for role, model in models(run).items() if result.metric in model.metrics
    }
    means = [value.mean for value in found.values()]
    low, width = min(means), max(means) - min(means)
    shown = []
    for role in (role for role in order if role in found):
        value = found[role]
        place = (value.mean - low) / width if width else 0.5
        spread = "" if value.sd is None else f"± {formats.size(result.metric, value.sd)}"
        detail = _detail(models(run)[role])
        place = 1.0 - place if run.lower_is_better else place
        text = formats.measure(result.metric, value.mean)
        shown.append(Tile(role, LABELS[role], text, spread, detail, round(100 * place, 1)))
    return shown


def seed_rows(run: Report) -> list[list[str]]:
    """Seed, alone, distilled, change; empty for one seed."""
    metric = run.monitor
    if metric is None or len(run.seed_results) < 2:
        return []
    rows = []
    for seed in run.seed_results:
        alone, distilled = (
            DASH if number is None else formats.measure(metric, number) for number in (seed.baseline, seed.student)
        )
        change = DASH
        if seed.baseline is not None and seed.student is not None:
            change = formats.difference(metric, seed.student - seed.baseline)
        rows.append([seed.seed, alone, distilled, change])
    return rows


def facts(run: Report) -> list[tuple[str, str]]:
    """Key facts as pairs of term and text; unknown ones are left out."""
    table = run.facts
    pairs = [
        ("Data", _data_fact(run)),
        ("Length", _length(table)),
        ("Seed" if len(run.seeds) == 1 else "Seeds", _seeds(run.seeds)),
        ("Device", _said(table.get("device"))),
        ("Loss kernels", _said(table.get("backend"))),
        ("Versions", ", ".join(versions(run))),
        ("Plugins", _plugins(table.get("plugins"))),
        ("Finished", f"{run.finished:%Y-%m-%d %H:%M} UTC"),
    ]
    return [(term, text) for term, text in pairs if text]


def versions(run: Report) -> list[str]:
    """The versions that the numbers come from."""
    names = (("kdengine", "kdengine"), ("torch", "PyTorch"))
    return [f"{label} {_said(run.facts[key])}" for key, label in names if _said(run.facts.get(key))]


def best_note(run: Report) -> str:
    """The best evaluation, labelled as what it is."""
    best = run.best
    if best is None:
        return ""
    when = f"epoch {best.epoch}" if best.epoch is not None else f"step {best.step}" if best.step is not None else ""
    reached = f"{formats.measure(best.metric, best.value)} {formats.metric_name(best.metric)}"
    return f"Best epoch: {reached}{f' at {when}' if when else ''}, chosen on the test set and therefore optimistic."


def comparison(runs: Sequence[Report], names: Sequence[str]) -> list[dict[str, str]]:
    """One line for each run: what it reached, from where, and at what size."""
    return [_comparison_row(run, name) for run, name in zip(runs, names, strict=True)]


def _comparison_row(run: Report, name: str) -> dict[str, str]:
    result = outcome(run)
    row = {"name": name, "data": run.data.name, "metric": "", "teacher": "", "alone": "", "distilled": "", "change": ""}
    row |= {"recovered": "", "agreement": "", "parameters": "", "ratio": "", "seconds": "", "verdict": ""}
    row["seeds"] = str(len(run.seeds)) if len(run.seeds) > 1 else ""
    if run.student.parameters is not None:
        row["parameters"] = formats.parameters(run.student.parameters)
        row["ratio"] = _ratio(run, run.student)
    if run.student.seconds is not None:
        row["seconds"] = formats.duration(run.student.seconds.mean)
    if result is None:
        return row
    metric = result.metric
    for role, value in (("teacher", result.teacher), ("alone", result.alone), ("distilled", result.distilled)):
        row[role] = "" if value is None else formats.spread_measure(metric, value)
    if result.alone is not None:
        row["change"] = formats.difference(metric, result.distilled.mean - result.alone.mean)
    if result.recovered is not None:
        row["recovered"] = formats.percent(result.recovered, 0)
    agreement = run.student.metrics.get("agreement")
    if agreement is not None and metric != "agreement":
        row["agreement"] = formats.spread_measure("agreement", agreement)
    return row | {"metric": formats.metric_name(metric), "verdict": result.verdict}


def _row(run: Report, role: str, model: Model, metrics: Sequence[str]) -> Row:
    cells = [
        formats.spread_measure(metric, model.metrics[metric]) if metric in model.metrics else DASH for metric in metrics
    ]
    seconds = "found trained" if model.cached else ""
    if model.seconds is not None and not model.cached:
        seconds = formats.duration(model.seconds.mean)
    return Row(
        role,
        LABELS[role],
        model.name,
        cells,
        "" if model.parameters is None else formats.parameters(model.parameters),
        "" if role == "teacher" else _ratio(run, model),
        seconds,
    )


def _change(run: Report, metric: str) -> str:
    alone = run.baseline.metrics.get(metric) if run.baseline else None
    distilled = run.student.metrics.get(metric)
    return DASH if alone is None or distilled is None else formats.difference(metric, distilled.mean - alone.mean)


def _ratio(run: Report, model: Model) -> str:
    if run.teacher is None or run.teacher.parameters is None or model.parameters is None:
        return ""
    return formats.ratio(model.parameters, run.teacher.parameters) or ""


def _detail(model: Model) -> str:
    size = "" if model.parameters is None else f"{formats.parameters(model.parameters)} parameters"
    return ", ".join(part for part in (model.name, size) if part)


def _data_fact(run: Report) -> str:
    sizes = [
        f"{formats.count(number)} {use}"
        for number, use in ((run.data.train, "to train"), (run.data.test, "to test"))
        if number is not None
    ]
    return ": ".join(part for part in (run.data.name, ", ".join(sizes)) if part)


def _length(table: Mapping[str, object]) -> str:
    parts = [
        f"{formats.count(number)} {key}"
        for key in ("epochs", "steps")
        if isinstance(number := table.get(key), int) and not isinstance(number, bool)
    ]
    return ", ".join(parts)


def _seeds(seeds: Sequence[str]) -> str:
    if len(seeds) <= 8:
        return ", ".join(seeds)
    return f"{len(seeds)} ({seeds[0]} to {seeds[-1]})"


def _plugins(raw: object) -> str:
    if not isinstance(raw, Mapping):
        return ""
    return ", ".join(f"{name} {_said(version)}".strip() for name, version in raw.items())


def _said(raw: object) -> str:
    return raw.strip() if isinstance(raw, str) else ""
