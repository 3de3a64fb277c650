"""``kdengine compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdengine.cli import tables
from kdengine.engine import layout

if TYPE_CHECKING:
    from kdengine.engine.compare import Comparison

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, finished or not.")]


def compare(
    left: Run,
    right: Run,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest difference of two numbers that counts as the same.")
    ] = 0.0,
) -> None:
    """Name the first step at which two runs differ, and in what. Exit code 1 when they do."""
    from kdengine.api import CheckpointError
    from kdengine.engine.compare import compare as compare_fits
    from kdengine.engine.compare import fits

    ours, theirs = fits(left), fits(right)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise CheckpointError(f"{left} holds the fits {sorted(ours)}, {right} holds {sorted(theirs)}: none of the same")
    different = False
    for name in shared:
        found = compare_fits(ours[name], theirs[name], tolerance)
        different |= found.first is not None
        show(name, found, tolerance)
    if different:
        for line in surroundings(left, right):
            typer.echo(line)
        raise typer.Exit(1)


def show(name: str, found: Comparison, tolerance: float) -> None:
    """What was found in one pair of fits."""
    label = "" if name == "." else f"{name}: "
    compared = min(found.steps)
    if found.first is None:
        how = "the same bits" if tolerance == 0.0 else f"the same within {tolerance:g}"
        more = "" if found.steps[0] == found.steps[1] else f" (they have {found.steps[0]:,} and {found.steps[1]:,})"
        typer.echo(f"{label}{how} over {compared:,} steps{more}")
        return
    typer.echo(f"{label}step {found.first.step} is the first that differs: {found.first.reason}")
    tables.show(["", "left", "right"], [[key, repr(a), repr(b)] for key, (a, b) in found.first.values.items()])


def surroundings(left: Path, right: Path) -> list[str]:
    """What else differs between two runs, which may be the reason."""
    from kdengine.engine import rundir
    from kdengine.recipe.load import differences, load, source_at

    lines = []
    recipes = [run / layout.RECIPE for run in (left, right)]
    if all(path.is_file() for path in recipes):
        lines += differences(*(load(source_at(path)) for path in recipes))
    summaries: list[dict[str, Any]] = [rundir.read_summary(run) or {} for run in (left, right)]
    for key in ("kdengine", "torch", "backend", "device", "seed"):
        ours, theirs = (summary.get(key) for summary in summaries)
        if ours != theirs and None not in (ours, theirs):
            lines.append(f"{key}: {ours!r} and {theirs!r}")
    return lines
