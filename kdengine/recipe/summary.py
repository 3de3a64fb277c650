"""The summary of a whole run: read back with care, put together over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import nn

from kdengine.api import CheckpointError
from kdengine.engine import layout, rundir
from kdengine.engine.result import Result


class _Entry(BaseModel):
    """A model in a summary; a number may be one over seeds."""

    metrics: dict[str, float | dict[str, Any] | None]
    parameters: int
    seconds: float | dict[str, Any] | None


class _DataEntry(BaseModel):
    labelled: float
    labelled_items: int
    train_items: int


class _Summary(BaseModel):
    """What is shown of a finished run, and what several seeds are put together from."""

    teacher: _Entry | None
    baseline: _Entry | None
    student: _Entry
    data: _DataEntry
    seeds: list[int] = []


def read_complete(out: Path, epochs: int) -> dict[str, Any] | None:
    """The summary of a whole run of so many epochs, if there is; an engine's own has no data.

    Raises:
        CheckpointError: there is, but no run has written it.
    """
    summary = rundir.read_summary(out)
    if summary is None or "data" not in summary or summary.get("epochs") != epochs:
        return None
    try:
        _Summary.model_validate(summary, strict=True)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3])
        raise CheckpointError(f"{out / layout.SUMMARY} is damaged: {wrong}") from error
    return summary


def entry(name: str, module: nn.Module, result: Result) -> dict[str, Any]:
    """A student's part of the summary."""
    return {
        "name": name,
        "metrics": rundir.as_stored(result.metrics),
        "parameters": rundir.count_parameters(module),
        "seconds": result.seconds,
    }


def aggregate(summaries: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """One summary of several seeds: students' numbers become ``{"mean", "sd", "n"}``.

    A teacher that is the same for all stays as it is; one that evolved with each student is treated like them.

    ``pooled_sd`` is, per metric, ``sqrt((sd_alone^2 + sd_distilled^2) / 2)``.
    """
    combined = {**summaries[0], "seeds": list(seeds), "best": None}
    combined["student"] = _combine([summary["student"] for summary in summaries])
    teachers = [summary["teacher"] for summary in summaries]
    if any(teacher["metrics"] != teachers[0]["metrics"] for teacher in teachers if teachers[0] is not None):
        combined["teacher"] = _combine(teachers)
    if summaries[0]["baseline"] is not None:
        combined["baseline"] = _combine([summary["baseline"] for summary in summaries])
        combined["pooled_sd"] = _pooled(combined["baseline"]["metrics"], combined["student"]["metrics"])
    return combined


def _combine(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    metrics = {name: spread([entry["metrics"][name] for entry in entries]) for name in entries[0]["metrics"]}
    return {**entries[0], "metrics": metrics, "seconds": spread([entry["seconds"] for entry in entries])}


def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean and sample standard deviation; None when a value is missing.

    >>> spread([1.0, 3.0])
    {'mean': 2.0, 'sd': 1.4142135623730951, 'n': 2}
    """
    present = [value for value in values if value is not None]
    if len(present) < len(values):
        return None
    sd = statistics.stdev(present) if len(present) > 1 else 0.0
    return {"mean": statistics.fmean(present), "sd": sd, "n": len(present)}


def _pooled(baseline: Mapping[str, Any], student: Mapping[str, Any]) -> dict[str, float]:
    both = [name for name in student if student[name] and baseline.get(name)]
    return {name: math.sqrt((baseline[name]["sd"] ** 2 + student[name]["sd"] ** 2) / 2) for name in both}
