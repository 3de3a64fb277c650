"""A run that has ended and has no checkpoint left, as ``kdengine clean`` leaves it: its outcome, and no way on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdengine._untrusted import shown
from kdengine.api import CheckpointError
from kdengine.engine import rundir
from kdengine.engine.fit import Fit
from kdengine.engine.layout import RECORDS, STUDENT, SUMMARY
from kdengine.engine.result import Result


def recall(fit: Fit) -> Result | None:
    """The stored outcome of a run that cannot go on and need not; its student gets the exported weights.

    Args:
        fit: one that found no checkpoint to go back to.

    Returns:
        None where nothing has ended in the run directory.

    Raises:
        CheckpointError: it has ended with fewer epochs than are asked for now, or what it left is damaged or of another
            student.
    """
    out = fit.out
    summary = None if out is None else fit.runtime.processes.on_main(lambda: rundir.read_summary(out))
    if out is None or summary is None:
        return None
    result = _result(out, summary)
    check_need(out, summary, fit.epochs)
    if not (out / STUDENT).is_file():
        raise CheckpointError(rundir.explain_no_student(out))
    _load(fit, out)
    fit.loggers.message(f"{fit.settings.name}: already finished, its checkpoints were removed")
    return result


def check_need(out: Path, summary: dict[str, Any], epochs: int) -> None:
    """Refuse to train longer what has ended and has no checkpoint to go on from.

    Raises:
        CheckpointError: more epochs are asked for than it ended with.
    """
    done = summary.get("epochs")
    if type(done) is not int:
        raise CheckpointError(f"{out / SUMMARY} is damaged: expected the number of epochs, got {shown(done)}")
    if epochs > done:
        raise CheckpointError(
            f"{out} is finished with {done} epochs and its checkpoints were removed, so it cannot go on to {epochs}; "
            f"train into another directory (its student, {out / STUDENT}, can be the beginning there)"
        )


def _result(out: Path, summary: dict[str, Any]) -> Result:
    try:
        student, status = summary["student"], summary["status"]
        return Result(
            metrics=dict(student["metrics"]),
            best=summary["best"],
            history=_history(out),
            steps=int(summary["steps"]),
            skipped=int(summary["skipped"]),
            seconds=float(student["seconds"]),
            status=str(status),
            out=out,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{out / SUMMARY} is damaged: {type(error).__name__}: {error}") from error


def _history(out: Path) -> list[dict[str, Any]]:
    """The evaluations among the records; the means of an epoch's terms went with the checkpoints."""
    records = rundir.read_records(out / RECORDS)
    return [{k: v for k, v in record.items() if k != "kind"} for record in records if record.get("kind") == "evaluate"]


def _load(fit: Fit, out: Path) -> None:
    """Give the student the weights that were exported, and its moving average too."""
    average = fit.models.average
    weights = rundir.read_student(out)
    for module in (fit.models.student, *([] if average is None else [average.module])):
        try:
            module.load_state_dict(_spread(fit, module, weights))
        except (RuntimeError, NotImplementedError) as error:
            raise CheckpointError(f"{out / STUDENT} is of another student: {error}") from error


def _spread(fit: Fit, module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, sharded where those of a module are."""
    if not fit.strategy.shards:
        return weights
    present = module.state_dict()
    return {name: fit.strategy.like(present[name], value) for name, value in weights.items() if name in present}
