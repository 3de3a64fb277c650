"""What a fit leaves behind when it ends: its result, and in the run directory the student and a summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kdengine.engine import layout, rundir, shards, wrappers
from kdengine.engine.fit import Fit
from kdengine.engine.result import Result
from kdengine.engine.student_file import write_weights


def conclude(fit: Fit, *, seed: int | None, plugins: Mapping[str, str]) -> Result:
    """The outcome of a fit; written into its run directory where it has one.

    Args:
        fit: trained to its end, or stopped.
        seed: the seed that the user gave.
        plugins: version of each plugin in use, by name.
    """
    result = Result(
        metrics={name: value for name, value in fit.latest.items() if name != "step"},
        best=fit.best,
        history=fit.history,
        steps=fit.position.step,
        skipped=fit.skipped,
        seconds=fit.seconds,
        status="stopped" if fit.stopping else "finished",
        out=fit.out,
        student=measured(fit),
    )
    if fit.out is not None:
        _write(fit, fit.out, result, _summary(fit, result, seed) | rundir.provenance(plugins))
    return result


def measured(fit: Fit) -> nn.Module:
    """The model that evaluations measure and that is exported: the moving average where there is one."""
    student, average = fit.models.student, fit.models.average
    if average is None:
        return student
    average.confirm(student)
    return average.module


def _write(fit: Fit, out: Path, result: Result, summary: dict[str, Any]) -> None:
    """Export the student and write the summary, each unless it is there already."""
    student, trained = fit.models.student, measured(fit)
    state = wrappers.plain_state(trained.state_dict(), trained)
    weights = {name: shards.whole(tensor) for name, tensor in state.items()}

    def write() -> None:
        concluded = _is_summary_of(rundir.read_summary(out), fit, result)
        if not (concluded and (out / layout.STUDENT).is_file()):
            write_weights(out / layout.STUDENT, weights, {"kdengine.student": wrappers.class_name(student)})
        if not concluded:
            rundir.write_summary(out, summary)

    fit.runtime.processes.on_main(write)


def _is_summary_of(summary: Mapping[str, Any] | None, fit: Fit, result: Result) -> bool:
    """Whether a stored summary is of this fit as it ended, and not of the same fit with fewer epochs."""
    return summary is not None and (summary.get("epochs"), summary.get("steps")) == (fit.epochs, result.steps)


def _summary(fit: Fit, result: Result, seed: int | None) -> dict[str, Any]:
    teachers = fit.context.teacher
    taught = {"metrics": {}, "parameters": sum(map(rundir.count_parameters, teachers)), "seconds": None}
    return {
        "status": result.status,
        "teacher": taught if teachers else None,
        "baseline": None,
        "student": {
            "metrics": result.metrics,
            "parameters": rundir.count_parameters(fit.models.student),
            "seconds": result.seconds,
        },
        "best": result.best,
        "steps": result.steps,
        "epochs": fit.epochs,
        "skipped": result.skipped,
        "seed": seed,
    }
