"""What a fit returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """The outcome of a fit.

    Attributes:
        metrics: the last evaluation; empty when there was none.
        best: the best value of the monitored metric as ``{"metric", "value", "step", "epoch"}``, or None. Chosen on
            the evaluation data: optimistic when that is the test set.
        history: one record per epoch: mean loss terms of the epoch, learning rate, metrics.
        steps: optimizer steps done.
        skipped: updates left out because a loss or gradient was not finite, or a callback said so.
        seconds: wall time of training and evaluation, over all resumes.
        status: ``finished``, or ``stopped`` by a callback.
        out: the run directory, or None.
    """

    metrics: dict[str, float | None]
    best: dict[str, Any] | None
    history: list[dict[str, Any]] = field(repr=False)
    steps: int
    skipped: int
    seconds: float
    status: str
    out: Path | None
