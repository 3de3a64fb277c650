"""The student of a run's best evaluation, from the checkpoint that is kept of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdengine.api import CheckpointError
from kdengine.engine import checkpoint
from kdengine.engine.layout import CHECKPOINTS


def read_best(out: Path, best: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Read the state dict of the student as the best evaluation saw it: the moving average where there was one.

    Args:
        out: the run directory.
        best: the best evaluation, as in ``summary.json`` or :class:`kdengine.Result`.

    Raises:
        CheckpointError: there was no best evaluation, or its checkpoint is gone or damaged.
    """
    if best is None:
        raise CheckpointError(
            f"{out} has no best student: no evaluation gave the monitored metric a number, or there are several seeds "
            "(name the directory of one)"
        )
    path = checkpoint.find(out / CHECKPOINTS, best["step"])
    if path is None:
        raise CheckpointError(
            f"the best evaluation of {out} was at step {best['step']} (epoch {best['epoch']}), but the checkpoint of "
            "that step is gone, by `kdengine clean` perhaps; the last student is still there"
        )
    tree, _ = checkpoint.load(path)
    try:
        return _evaluated(tree)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no student: {error!r}") from error


def _evaluated(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """What an evaluation measured of a checkpoint's state."""
    if tree["average"] is None:
        return dict(tree["student"])
    prefix = "module."  # of AveragedModel, beside the number of what it averaged
    return {name.removeprefix(prefix): value for name, value in tree["average"].items() if name.startswith(prefix)}
