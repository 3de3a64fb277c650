"""``kdengine run`` and ``kdengine check``."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdengine.cli import planning, tables
from kdengine.engine import layout

if TYPE_CHECKING:
    from kdengine.engine.loggers import LoggerLike
    from kdengine.recipe.load import Source
    from kdengine.recipe.plan import Plan

RUNS = Path("runs")

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as losses.kd.temperature=2."),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="NAME_OR_PATH", help="Let a plugin act, beside the recipe's own."),
]
NoPlugins = Annotated[
    list[str] | None, typer.Option("--no-plugin", metavar="NAME", help="Switch an installed plugin off.")
]


def run(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file, or the name of one that 'kdengine recipes' lists.")
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repeat the student with so many seeds.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/NAME when left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")] = False,
    plugins: Plugins = None,
    no_plugins: NoPlugins = None,
    trace_hooks: Annotated[bool, typer.Option("--trace-hooks", help="Print the time of each plugin's hooks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and the outcome.")] = False,
) -> None:
    """Train the teacher, the student alone and the distilled student; write a run directory and a report."""
    from kdengine.api.processes import join
    from kdengine.recipe.run import Options
    from kdengine.recipe.run import run as carry_out

    source = find_source(recipe, out, resume=resume)
    plan = planning.prepare(source, overrides or (), plugins or (), no_plugins or ())
    processes = join()
    folder, made = processes.on_main(lambda: choose_directory(plan.recipe.name, out, resume=resume))
    options = Options(
        out=folder,
        seeds=processes.on_main(lambda: count_seeds(folder, seeds)) if resume else seeds,
        resume=resume,
        loggers=make_loggers(plan, quiet=quiet),
        say=ignore if quiet and not trace_hooks else typer.echo,
        trace_hooks=trace_hooks,
    )
    if not quiet:
        typer.echo(f"{'going on with' if resume and not made else 'writing'} {folder}")
    try:
        summary = carry_out(plan, options)
    finally:
        if out is None and processes.is_main:
            with suppress(OSError):  # not empty: the run has begun
                folder.rmdir()
    if processes.is_main:
        tables.show_outcome(summary)
        typer.echo(report_path(folder))


def ignore(text: str) -> None:
    """Say nothing."""


def find_source(recipe: str | None, out: Path | None, *, resume: bool) -> Source:
    """The recipe that is named, or the one of the run that goes on."""
    from kdengine.api import ConfigurationError
    from kdengine.recipe.load import find, source_at

    if recipe is not None:
        return find(recipe)
    if not resume or out is None:
        raise ConfigurationError(
            "name a recipe: a file, or one that 'kdengine recipes' lists (kdengine run digits). "
            "It may be left out when a run goes on: kdengine run --resume --out DIR"
        )
    stored = out / layout.RECIPE
    if not stored.is_file():
        raise ConfigurationError(f"nothing to resume: there is no {stored}")
    return source_at(stored)


def choose_directory(name: str, out: Path | None, *, resume: bool) -> tuple[Path, bool]:
    """The run directory, and whether it was made just now.

    Without ``out`` a new run takes the first free one of runs/NAME, runs/NAME-2 and so on; making it here keeps two
    runs that start at once apart.
    """
    if out is not None:
        made = not (out / layout.RECIPE).exists()
        if made and resume:
            typer.echo(f"there is no run in {out} to go on with: starting it")
        return out, made
    if resume and (found := newest(name)) is not None:
        return found, False
    if resume:
        typer.echo(f"there is no {RUNS / name} to go on with: starting it")
    number = 1
    while True:
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder, True
        except FileExistsError:
            if RUNS.is_file():
                raise
            number += 1


def newest(name: str) -> Path | None:
    """The run of this name that was started or resumed last."""
    pattern = re.compile(rf"{re.escape(name)}(-\d+)?")
    found = [path for path in RUNS.glob(f"*/{layout.RECIPE}") if pattern.fullmatch(path.parent.name)]
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent if found else None


def count_seeds(folder: Path, given: int | None) -> int | None:
    """How many seeds a run that goes on has; a directory of one kind is not continued as the other."""
    from kdengine.api import CheckpointError, ConfigurationError
    from kdengine.engine import rundir

    planned = planned_seeds(folder)
    several = planned is not None or any(folder.glob(f"seed-*/{layout.RECIPE}"))
    single = (folder / layout.RECIPE).exists()
    if given is not None and single and not several:
        raise ConfigurationError(f"{folder} holds a run of one seed: leave --seeds out, or choose another --out")
    if given is None and planned is not None:
        return len(planned)
    if given is None and several:  # one that was started before its seeds were written down
        summary = rundir.read_summary(folder)
        if summary is None:
            raise ConfigurationError(f"{folder} holds a run of several seeds: say how many it shall have: --seeds N")
        seeds = summary.get("seeds")
        if not isinstance(seeds, list):
            raise CheckpointError(f"{folder / layout.SUMMARY} is damaged: expected a list of seeds")
        return len(seeds)
    return given


def planned_seeds(folder: Path) -> list[int] | None:
    """The seeds that a run was started with; None for one that was started without ``--seeds``."""
    from kdengine._untrusted import MIB, read_json
    from kdengine.api import CheckpointError

    try:
        seeds = read_json(folder / layout.SEEDS, MIB)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{folder / layout.SEEDS} is damaged: {error}") from error
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise CheckpointError(f"{folder / layout.SEEDS} is damaged: expected a list of seeds")
    return seeds


def make_loggers(plan: Plan, *, quiet: bool) -> Callable[[], list[LoggerLike]]:
    """A factory of the loggers of one fit: the recipe's, or with ``quiet`` those that do not print, and notes."""

    def fresh() -> list[LoggerLike]:
        shown = [
            bound for bound in plan.loggers.values() if not quiet or bound.component.qualified != "builtin:console"
        ]
        made: list[LoggerLike] = [bound() for bound in shown]
        return [*made, notes()] if quiet else made

    return fresh


def notes() -> LoggerLike:
    """A logger that passes on the engine's notes and nothing else."""
    from kdengine.api import Logger

    class Notes(Logger):
        def message(self, text: str) -> None:
            if "resumed at step" not in text and "already finished" not in text:
                planning.warn(text)

    return Notes()


def report_path(folder: Path) -> Path:
    """Write the report and return its path; without the extra, say how to get it and return the run directory."""
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        typer.echo(f"no report: {' and '.join(missing)} missing (pip install 'kdengine[report]')")
        return folder
    from kdengine.cli.report import write_report

    return write_report([folder], folder / "report.html", planning.warn)


def check(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that 'kdengine recipes' lists.")],
    overrides: Overrides = None,
    plugins: Plugins = None,
    no_plugins: NoPlugins = None,
) -> None:
    """Check a recipe and tell what it would take. Trains nothing, writes nothing."""
    from kdengine.recipe.estimate import estimate
    from kdengine.recipe.load import find

    plan = planning.prepare(find(recipe), overrides or (), plugins or (), no_plugins or ())
    found: Any = estimate(plan)
    tables.show_estimate(plan.recipe, found)
    order = plan.host.order()
    if order:
        typer.echo("callbacks, in order:\n" + "\n".join(f"  {line}" for line in order))
    typer.echo(f"{recipe} is fine: nothing was trained or written")
