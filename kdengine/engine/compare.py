"""Where two runs part: the first step whose records differ, and in what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdengine.api import CheckpointError
from kdengine.engine.layout import STEPS
from kdengine.engine.rundir import read_records


@dataclass(frozen=True)
class Difference:
    """The first step at which two fits differ.

    Attributes:
        step: counted from 1.
        values: for each field that differs, both values; None where a record lacks it.
    """

    step: int
    values: dict[str, tuple[Any, Any]]

    @property
    def reason(self) -> str:
        """What the differing fields mean."""
        if "batch" in self.values:
            return "the batch holds other items, labels or inputs"
        if set(self.values) == {"lr"}:
            return "the learning rate differs"
        return "the items are the same; weights, random draws or arithmetic differ"


@dataclass(frozen=True)
class Comparison:
    """What comparing two fits found.

    Attributes:
        steps: how many steps each has recorded.
        first: the first difference in the steps that both have, or None.
    """

    steps: tuple[int, int]
    first: Difference | None


def fits(run: Path) -> dict[str, Path]:
    """The fits of a run directory that recorded their steps, by their place in it.

    Raises:
        CheckpointError: there is none.
    """
    found = {str(path.parent.relative_to(run)): path for path in sorted(run.rglob(STEPS))}
    if not found:
        raise CheckpointError(f"{run} is no run directory: no {STEPS} in it or below it")
    return found


def compare(left: Path, right: Path, tolerance: float = 0.0) -> Comparison:
    """Compare two fits step by step.

    Args:
        left: a ``steps.jsonl``.
        right: another.
        tolerance: largest difference of two numbers that still counts as the same.
    """
    ours, theirs = _by_step(left), _by_step(right)
    for step in ours:
        if step in theirs and (values := _differences(ours[step], theirs[step], tolerance)):
            return Comparison((len(ours), len(theirs)), Difference(step, values))
    return Comparison((len(ours), len(theirs)), None)


def _by_step(path: Path) -> dict[int, dict[str, Any]]:
    return {record["step"]: record for record in read_records(path) if isinstance(record.get("step"), int)}


def _differences(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*ours, *theirs])
    pairs = {name: (ours.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _same(*pair, tolerance)}


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return one == other or math.isclose(one, other, rel_tol=0.0, abs_tol=tolerance)
    return bool(one == other)
