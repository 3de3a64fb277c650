"""The page: what is shown, filled into the templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdengine import _files as files
from kdengine._version import __version__
from kdengine.api import ConfigurationError
from kdengine.cli.report import charts, compare, tables
from kdengine.cli.report.formats import metric_name
from kdengine.cli.report.headline import headline, outcome
from kdengine.cli.report.images import Sample, read_samples
from kdengine.cli.report.reading import Report, read_run
from kdengine.cli.report.recipe import differences, highlighted
from kdengine.engine.layout import REPORT
from kdengine.host.host import warn_user

TEMPLATES = Path(__file__).parent.parent / "templates"


def write_report(runs: Sequence[Path], target: Path, warn: Callable[[str], None] = warn_user) -> Path:
    """Write one HTML file about a run, or about several runs beside each other.

    Args:
        runs: run directories, with seeds or without.
        target: the file, or a directory to put ``report.html`` into. Missing directories are made.
        warn: takes a line about each damaged value, which the report leaves out and names.

    Returns:
        The file.

    Raises:
        ConfigurationError: no run is named, or matplotlib or jinja2 is not installed.
        CheckpointError: a directory holds no finished run.
    """
    _require("matplotlib", "jinja2")
    if not runs:
        raise ConfigurationError("expected at least one run directory to report on, got none")
    reports = [read_run(Path(run)) for run in runs]
    for line in (line for report in reports for line in report.damage.lines()):
        warn(f"left out of the report, because it is damaged: {line}")
    page = _run_page(reports[0]) if len(reports) == 1 else _comparison_page(reports)
    target = target / REPORT if target.is_dir() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(target, page)
    return target


def _require(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigurationError(
            f"the report needs {' and '.join(missing)}; install the optional part: pip install 'kdengine[report]'"
        )


def _run_page(run: Report) -> str:
    samples = _samples(run)
    noun = "images" if samples else "examples"
    result = outcome(run)
    hero, small = charts.run_charts(run, charts.Drawer())
    return _render(
        "run.html",
        run=run,
        headline=headline(run, noun),
        tiles=tables.tiles(run, result) if result else [],
        facts=tables.facts(run),
        metrics=[metric_name(metric) for metric in tables.metric_names(run)],
        rows=tables.results(run),
        seeds=tables.seed_rows(run),
        best=tables.best_note(run),
        spread=len(run.seeds) if len(run.seeds) > 1 else 0,
        hero=hero,
        charts=small,
        samples=samples,
        recipe=highlighted(run.recipe),
        command=_command(run),
        versions=tables.versions(run),
        damage=run.damage.lines(),
    )


def _comparison_page(runs: Sequence[Report]) -> str:
    labels = compare.names(runs)
    return _render(
        "compare.html",
        verdict=compare.verdict(runs, labels),
        rows=tables.comparison(runs, labels),
        charts=charts.comparison_charts(runs, labels, charts.Drawer()),
        labels=labels,
        differences=differences([run.settings for run in runs]),
        summaries=[(label, run, headline(run, "examples")) for label, run in zip(labels, runs, strict=True)],
        versions=[f"kdengine {__version__}"],
        damage=[line for run in runs for line in run.damage.lines()],
    )


def _render(template: str, **content: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def _samples(run: Report) -> list[Sample]:
    for folder in [run.path, *run.seed_folders]:
        if found := read_samples(folder):
            return found
    return []


def _command(run: Report) -> str:
    seeds = f" --seeds {len(run.seeds)}" if len(run.seeds) > 1 else ""
    return f"kdengine run recipe.toml{seeds}"
