"""Reading run directories into what the report shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdengine._untrusted import TOML_LIMIT, parse_toml, read_bytes
from kdengine.api import CheckpointError
from kdengine.cli.report.damage import LARGEST_COUNT, Damage, cleaned, counted, text
from kdengine.cli.report.formats import looks_lower_better
from kdengine.cli.report.records import Keys, Record, classify, curve
from kdengine.cli.report.values import Value, integer, number, pooled, value, values
from kdengine.engine.layout import BASELINE, RECIPE, RECORDS, SUMMARY
from kdengine.engine.rundir import finished_summary, read_lines, read_summary


@dataclass(frozen=True)
class Model:
    """A teacher, a student trained alone or a distilled student.

    Attributes:
        name: what it is built from; may be empty.
        metrics: its last evaluation.
        parameters: number of parameters, where known.
        seconds: training time, where it was trained.
        cached: whether it was found trained.
    """

    name: str
    metrics: dict[str, Value]
    parameters: int | None
    seconds: Value | None
    cached: bool


@dataclass(frozen=True)
class Data:
    """The data set: sizes are None where unknown."""

    name: str
    train: int | None
    labelled: int | None
    labelled_share: float | None
    test: int | None


@dataclass(frozen=True)
class Best:
    """The best evaluation, chosen on the evaluation data."""

    metric: str
    value: float
    step: int | None
    epoch: int | None


@dataclass(frozen=True)
class SeedResult:
    """The monitored metric of one seed."""

    seed: str
    baseline: float | None
    student: float | None


@dataclass(frozen=True)
class Report:
    """One run, ready to be shown.

    Attributes:
        path: its directory.
        name: the recipe's name; the directory's where it has none.
        monitor: the metric of the headline; None when nothing was measured.
        lower_is_better: the monitored metric's direction.
        pooled_sd: spread of the monitored metric over seeds; None for one seed.
        seeds: the seeds' names.
        student_records: the distilled student's records, one list for each seed.
        baseline_records: the same for the student alone; empty lists where there are none.
        recipe: the resolved recipe's text; may be empty.
        facts: the summary's plain facts: steps, epochs, device, versions.
        damage: what of the run's files cannot be shown.
    """

    path: Path
    name: str
    description: str
    finished: datetime
    stopped: bool
    teacher: Model | None
    baseline: Model | None
    student: Model
    best: Best | None
    data: Data
    monitor: str | None
    lower_is_better: bool
    pooled_sd: float | None
    seeds: list[str]
    seed_results: list[SeedResult]
    student_records: list[list[Record]]
    baseline_records: list[list[Record]]
    keys: Keys
    recipe: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    damage: Damage

    @property
    def seed_folders(self) -> list[Path]:
        """Where the seeds' own records lie."""
        return seed_folders(self.path)


def read_run(path: Path) -> Report:
    """Read a run directory, with seeds or without.

    Raises:
        CheckpointError: it holds no summary, or a damaged one.
    """
    damage = Damage()
    summary = _cleaned_summary(path, finished_summary(path), damage)
    folders = seed_folders(path)
    seeds = [summary if folder == path else _summary(folder, damage) for folder in folders]
    student = _model(summary, "student", damage) or Model("", {}, None, None, False)
    baseline = _model(summary, "baseline", damage)
    recipe, settings = _recipe([path, *folders])
    student_records = [_records(folder, damage) for folder in folders]
    baseline_records = [_records(folder / BASELINE, damage) for folder in folders]
    monitor = _monitor(summary, student)
    return Report(
        path=path,
        name=_text(summary.get("name")) or text(path.resolve().name),
        description=_text(summary.get("description")),
        finished=datetime.fromtimestamp((path / SUMMARY).stat().st_mtime, UTC),
        stopped=summary.get("status") not in (None, "finished"),
        teacher=_model(summary, "teacher", damage),
        baseline=baseline,
        student=student,
        best=_best(summary.get("best")),
        data=_data(summary.get("data"), damage),
        monitor=monitor,
        lower_is_better=_lower_is_better(monitor, seeds, student_records),
        pooled_sd=_pooled_sd(summary, monitor, student, baseline),
        seeds=_seeds(summary),
        seed_results=list(_seed_results(folders, seeds, monitor)) if folders != [path] else [],
        student_records=student_records,
        baseline_records=baseline_records,
        keys=classify([record for records in student_records for record in records], _loss_arguments(settings)),
        recipe=recipe,
        settings=settings,
        facts={**summary, **{key: counted(summary, key, damage, SUMMARY) for key in ("epochs", "steps")}},
        damage=damage,
    )


def seed_folders(path: Path) -> list[Path]:
    """The directories that hold records: one for each seed, or the run's own."""
    found = [folder for folder in path.glob("seed-*") if folder.is_dir()]
    return sorted(found, key=lambda folder: (len(folder.name), folder.name)) or [path]


def _summary(folder: Path, damage: Damage) -> dict[str, Any]:
    return _cleaned_summary(folder, read_summary(folder) or {}, damage)


def _cleaned_summary(folder: Path, summary: Mapping[str, Any], damage: Damage) -> dict[str, Any]:
    found: dict[str, Any] = cleaned(summary, damage, str(folder / SUMMARY))
    return found


def _records(folder: Path, damage: Damage) -> list[Record]:
    """The records of a fit that have a place in training, each without what cannot be shown."""
    file, found = folder / RECORDS, list[Record]()
    for line, raw in read_lines(file):
        if raw is None:
            damage.note(str(file), f"line {line} is no record")
            continue
        place = f"{file}: line {line}"
        if "step" not in raw:
            damage.note(place, "it has no step")
        record = cleaned(raw, damage, place)
        if counted(record, "step", damage, place) is not None:
            found.append(record)
    return found


def _model(summary: Mapping[str, Any], role: str, damage: Damage) -> Model | None:
    raw = summary.get(role)
    if not isinstance(raw, Mapping):
        return None
    return Model(
        name=_text(raw.get("name")),
        metrics=values(raw.get("metrics")),
        parameters=counted(raw, "parameters", damage, f"{SUMMARY}: {role}"),
        seconds=_duration(raw.get("seconds"), damage, f"{SUMMARY}: {role}"),
        cached=raw.get("cached") is True,
    )


def _duration(raw: Any, damage: Damage, place: str) -> Value | None:
    read = value(raw)
    if read is not None and not 0.0 <= read.mean <= LARGEST_COUNT:
        damage.note(place, f"seconds = {read.mean:g}")
        return None
    return read


def _data(raw: Any, damage: Damage) -> Data:
    table = raw if isinstance(raw, Mapping) else {}
    place = f"{SUMMARY}: data"
    share = number(table.get("labelled"))
    if share is not None and not 0.0 <= share <= 1.0:
        damage.note(place, f"labelled = {share:g}")
        share = None
    return Data(
        name=_text(table.get("name")),
        train=counted(table, "train_items", damage, place),
        labelled=counted(table, "labelled_items", damage, place),
        labelled_share=share,
        test=counted(table, "test_items", damage, place),
    )


def _best(raw: Any) -> Best | None:
    if not isinstance(raw, Mapping):
        return None
    reached = value(raw.get("value"))
    metric = _text(raw.get("metric"))
    if reached is None or not metric:
        return None
    return Best(metric, reached.mean, integer(raw.get("step")), integer(raw.get("epoch")))


def _monitor(summary: Mapping[str, Any], student: Model) -> str | None:
    named = _text(summary.get("monitor"))
    if named in student.metrics:
        return named
    return next(iter(student.metrics), None)


def _lower_is_better(
    monitor: str | None, summaries: Sequence[Mapping[str, Any]], seeds: Sequence[Sequence[Record]]
) -> bool:
    """What the runs took for their best tells the direction; where they do not say, the metric's name does."""
    if monitor is None:
        return False
    for summary, records in zip(summaries, seeds, strict=True):
        best = _best(summary.get("best"))
        line = curve([records], "evaluate", monitor)
        if best is None or best.metric != monitor or line is None or not line.varies:
            continue
        return best.value - min(line.means) < max(line.means) - best.value
    return looks_lower_better(monitor)


def _pooled_sd(summary: Mapping[str, Any], monitor: str | None, student: Model, baseline: Model | None) -> float | None:
    if monitor is None:
        return None
    given = summary.get("pooled_sd")
    known = number(given.get(monitor)) if isinstance(given, Mapping) else None
    if known is not None:
        return known
    parts = [model.metrics.get(monitor) for model in (student, baseline) if model is not None]
    return pooled(*(part for part in parts if part is not None))


def _seeds(summary: Mapping[str, Any]) -> list[str]:
    listed = summary.get("seeds")
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        return [str(seed) for seed in listed]
    seed = summary.get("seed")
    return [] if seed is None else [str(seed)]


def _seed_results(
    folders: Sequence[Path], summaries: Sequence[Mapping[str, Any]], monitor: str | None
) -> Iterator[SeedResult]:
    if monitor is None:
        return
    for folder, summary in zip(folders, summaries, strict=True):
        models = [summary.get(role) for role in ("baseline", "student")]
        tables = [model.get("metrics") if isinstance(model, Mapping) else None for model in models]
        alone, distilled = (values(table).get(monitor) for table in tables)
        if distilled is not None:
            yield SeedResult(text(folder.name).removeprefix("seed-"), alone.mean if alone else None, distilled.mean)


def _recipe(folders: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    for folder in folders:
        if (folder / RECIPE).is_file():
            text = _recipe_text(folder / RECIPE)
            try:
                return text, parse_toml(text)
            except ValueError:
                return text, {}
    return "", {}


def _recipe_text(path: Path) -> str:
    try:
        return read_bytes(path, TOML_LIMIT).decode("utf-8", errors="replace")
    except ValueError as error:
        raise CheckpointError(f"{path} is no recipe: {error}") from error


def _loss_arguments(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    losses = settings.get("losses")
    if not isinstance(losses, Mapping):
        return {}
    return {str(label): list(table) for label, table in losses.items() if isinstance(table, Mapping)}


def _text(raw: Any) -> str:
    return raw.strip() if isinstance(raw, str) else ""
