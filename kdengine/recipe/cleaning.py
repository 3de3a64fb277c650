"""Which checkpoints nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdengine.engine import checkpoint, layout, rundir
from kdengine.recipe.load import load, source_at


def removable(run: Path) -> Iterator[Path]:
    """The checkpoint directories of those parts of a run that have ended and will not go on."""
    recipe = run / layout.RECIPE
    epochs = load(source_at(recipe)).train.epochs if recipe.is_file() else None
    for part in rundir.parts(run):
        if has_ended(part, epochs):
            yield part / layout.CHECKPOINTS


def has_ended(part: Path, epochs: int | None) -> bool:
    """Whether what trained in a directory has ended, and holds checkpoints that nothing will go on from.

    A run that is made longer has the summary of the shorter one until it ends: its recipe has more epochs by then, and
    soon there are checkpoints of later steps.

    Args:
        part: where one student trained.
        epochs: those of the run's recipe; None where a script trained it.
    """
    folder = part / layout.CHECKPOINTS
    summary = rundir.read_summary(part)
    if summary is None or not (part / layout.STUDENT).is_file() or not folder.is_dir() or folder.is_symlink():
        return False
    if epochs is not None and summary.get("epochs") != epochs:
        return False
    steps = summary.get("steps")
    return isinstance(steps, int) and max(checkpoint.steps(folder), default=0) <= steps
