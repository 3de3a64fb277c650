"""What is done with runs that are there: evaluate, report, export, clean."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdengine.cli import planning, tables
from kdengine.engine import layout

if TYPE_CHECKING:
    from kdengine.recipe.load import Source

_SEED = re.compile(r"-?\d{1,20}", re.ASCII)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Best = Annotated[bool, typer.Option("--best", help="The student of the best evaluation, not the last.")]


def evaluate(
    run: Run,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the run's recipe, such as data.root=DIR."),
    ] = None,
    best: Best = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run's student on the test set."""
    from kdengine.recipe.data import make_data
    from kdengine.recipe.run import measure, trained_student

    source, folders = read_recipe(run), student_folders(run)
    plan = planning.prepare(source, overrides or ())
    data = make_data(plan)
    rows: dict[str, dict[str, float | None]] = {}
    for folder in folders:
        name = folder.name if folder != run else "student"
        rows[name] = measure(plan, data, trained_student(plan, data, folder, plan.recipe.train.seed, best=best))
    if as_json:
        tables.show_json(rows.get("student", rows))
        return
    show_metrics(rows, len(data.test))
    skipped = [name for name in plan.metrics if name not in next(iter(rows.values()))]
    if skipped:
        typer.echo(f"left out, because the teacher is not loaded here: {', '.join(skipped)}")


def show_metrics(rows: dict[str, dict[str, float | None]], items: int) -> None:
    """Metrics of one student, or of one per seed with their mean."""
    from kdengine.cli.report.formats import metric_name
    from kdengine.recipe.summary import spread

    names = list(next(iter(rows.values())))
    cells = [[label, *(tables.metric(name, row[name]) for name in names)] for label, row in rows.items()]
    if len(rows) > 1:
        spreads = [tables.metric(name, spread([row[name] for row in rows.values()])) for name in names]
        cells.append(["mean ± sd", *spreads])
    tables.show(["", *map(metric_name, names)], cells, right=True)
    typer.echo(f"on {items:,} test items")


def read_recipe(run: Path) -> Source:
    """The recipe that a run directory holds.

    Raises:
        CheckpointError: it holds none; a script's run has none either.
    """
    from kdengine.api import CheckpointError
    from kdengine.engine import rundir
    from kdengine.recipe.load import source_at

    path = run / layout.RECIPE
    if path.is_file():
        return source_at(path)
    if not is_run(run):
        raise CheckpointError(rundir.explain_no_student(run))
    raise CheckpointError(
        f"{run} was written by a script (Engine(out=...)) and holds no {layout.RECIPE}, which says how its model and "
        f"data are made; evaluate it in a script: student.load_state_dict(kdengine.load_run({str(run)!r}).student()), "
        "then Engine.evaluate"
    )


def is_run(folder: Path) -> bool:
    """Whether a directory is a run's, written by a recipe or by a script; its run may be unfinished."""
    return any((folder / name).exists() for name in (layout.RECIPE, layout.SUMMARY, layout.RECORDS))


def student_folders(run: Path) -> list[Path]:
    """The directories of a run that hold a trained student: itself, or one per seed.

    Raises:
        CheckpointError: there is none, or that of a finished seed is missing.
    """
    from kdengine.api import CheckpointError
    from kdengine.engine import rundir

    if (run / layout.STUDENT).is_file():
        return [run]
    folders = seed_folders(run)
    found = [folder for folder in folders if (folder / layout.STUDENT).is_file()]
    for folder in folders:
        if folder not in found and (folder / layout.SUMMARY).is_file():
            raise CheckpointError(
                f"{folder} is finished but holds no {layout.STUDENT}; "
                f"kdengine run --resume --out {run} writes it again while its checkpoints are there"
            )
    if not found:
        raise CheckpointError(rundir.explain_no_student(run))
    return found


def seed_folders(run: Path) -> list[Path]:
    """The directories of a run's seeds, in their order."""
    named = {path: path.name.removeprefix("seed-") for path in run.glob("seed-*") if path.is_dir()}
    return sorted((path for path, seed in named.items() if _SEED.fullmatch(seed)), key=lambda path: int(named[path]))


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; RUN/report.html, or report.html here when several are compared."),
    ] = None,
) -> None:
    """Write a report of one run, or a comparison of several."""
    from kdengine.cli.report import write_report

    default = runs[0] / layout.REPORT if len(runs) == 1 else Path(layout.REPORT)
    typer.echo(write_report(runs, out or default, planning.warn))


def export(
    run: Run,
    file: Annotated[Path, typer.Argument(help="FILE.safetensors, or FILE.pth or FILE.pt for torch.load.")],
    best: Best = False,
) -> None:
    """Write a run's student as a state dict."""
    import torch

    from kdengine import _files as files
    from kdengine.api import ConfigurationError
    from kdengine.engine import rundir
    from kdengine.engine.student_file import write_weights

    if file.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConfigurationError(f"expected a file that ends in .safetensors, .pth or .pt, got {file}")
    folders = student_folders(run)
    if folders != [run]:
        names = ", ".join(folder.name for folder in folders)
        raise ConfigurationError(f"{run} holds several students ({names}): name one, such as {folders[0]}")
    state = rundir.read_student(run, best=best)
    if file.suffix == ".safetensors" and best:
        write_weights(file, state)
    elif file.suffix == ".safetensors":
        with files.replacing(file) as temporary:
            shutil.copyfile(run / layout.STUDENT, temporary)
    else:
        with files.replacing(file) as temporary:
            torch.save(state, temporary)
    typer.echo(f"wrote {file} ({tables.amount(file.stat().st_size)})")


def clean(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Run directories; all below runs/ when left out.")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Remove the trained teachers and compiled libraries of the cache instead.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove the checkpoints of finished runs, or the cache. Lists what would go, and asks first."""
    from kdengine import _files as files
    from kdengine.api import ConfigurationError

    if cache and runs:
        raise ConfigurationError("give run directories or --cache, not both")
    with ExitStack() as held:
        found = list(cached(held) if cache else checkpoints(runs, held))
        if not found:
            typer.echo("nothing to remove")
            return
        for folder in found:
            typer.echo(f"{megabytes(folder):10.1f} MB  {folder}")
        what = (
            "trained teachers and compiled libraries"
            if cache
            else "checkpoints of finished runs (students, records and reports stay)"
        )
        total = f"{sum(map(megabytes, found)):.1f} MB of {what}"
        if not yes:
            typer.confirm(f"Remove {total}?", abort=True)
        for folder in found:
            files.discard_directory(folder)
        typer.echo(f"removed {total}")


def checkpoints(runs: list[Path] | None, held: ExitStack) -> Iterator[Path]:
    """The checkpoint directories of finished runs, each locked by the stack; a run that is in use is left alone.

    Raises:
        CheckpointError: a run that is named is none, or is not finished.
    """
    from kdengine.api import CheckpointError, ConfigurationError
    from kdengine.engine import rundir
    from kdengine.recipe.cleaning import removable

    named = runs is not None
    for run in runs or sorted(path.parent for path in Path("runs").glob(f"*/{layout.RECIPE}")):
        if named:
            if not is_run(run):
                raise CheckpointError(rundir.explain_no_student(run))
            rundir.finished_summary(run)
        elif not (run / layout.SUMMARY).is_file():
            continue
        try:
            held.enter_context(rundir.in_use(run))
            for folder in removable(run):
                held.enter_context(rundir.in_use(folder.parent))
                yield folder
        except (ConfigurationError, CheckpointError) as error:
            if named and isinstance(error, CheckpointError):
                raise
            typer.echo(f"left alone: {error}")


def cached(held: ExitStack) -> Iterator[Path]:
    """What the cache holds, each folder locked by the stack; one that is in use is left alone."""
    from kdengine._locks import Busy, locked
    from kdengine.ops import build
    from kdengine.recipe.teacher import lock_of

    teachers = ((folder, lock_of(folder)) for folder in cached_teachers())
    libraries = ((folder, build.lock_of(folder)) for folder in build.kept())
    for folder, lock in (*teachers, *libraries):
        try:
            held.enter_context(locked(lock))
        except Busy as owner:
            typer.echo(f"left alone: {folder} is in use by {owner}")
        else:
            yield folder


def cached_teachers() -> Iterator[Path]:
    """The directories of the teacher cache; anything else in there is left alone."""
    from kdengine import _files as files
    from kdengine.recipe.teacher import teachers_folder

    files.sweep(teachers_folder())
    for folder in sorted(teachers_folder().glob("*")):
        ours = (layout.SUMMARY, layout.RECORDS, layout.CHECKPOINTS)
        if folder.is_dir() and not folder.is_symlink() and any((folder / name).exists() for name in ours):
            yield folder


def megabytes(folder: Path) -> float:
    """What is in a directory."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
