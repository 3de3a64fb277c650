"""What a fit returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from kdengine.api import ConfigurationError
from kdengine.engine import rundir, wrappers


@dataclass(frozen=True)
class Result:
    """The outcome of a fit.

    Attributes:
        metrics: the last evaluation; empty when there was none.
        best: the best value of the monitored metric as ``{"metric", "value", "step", "epoch", "mode"}``, or None.
            Chosen on the evaluation data: optimistic when that is the test set.
        history: one record per epoch: mean loss terms of the epoch, learning rate, metrics.
        steps: optimizer steps done.
        skipped: updates left out because a loss or gradient was not finite, or a callback said so.
        seconds: wall time of training and evaluation, over all resumes.
        status: ``finished``, or ``stopped`` by a callback.
        out: the run directory, or None.
        student: the model that was measured and is exported: the moving average where ``ema`` was given, else the
            student itself.
    """

    metrics: dict[str, float | None]
    best: dict[str, Any] | None
    history: list[dict[str, Any]] = field(repr=False)
    steps: int
    skipped: int
    seconds: float
    status: str
    out: Path | None
    student: nn.Module | None = field(default=None, repr=False, compare=False)

    def load_best(self, model: nn.Module) -> nn.Module:
        """Give a model the weights of the student that did best, from the run directory.

        Args:
            model: the student, or another of its class.

        Returns:
            the model.

        Raises:
            ConfigurationError: the fit had no run directory, in which a checkpoint of the best is kept.
            CheckpointError: there was no best evaluation, or its checkpoint is gone.
        """
        if self.out is None:
            raise ConfigurationError("the best student is kept in a run directory, and this fit had none: Engine(out=)")
        model.load_state_dict(wrappers.fitted(rundir.read_student(self.out, best=True), model))
        return model
