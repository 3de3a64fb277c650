"""A schedule that reacts to an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from kdengine.api import ConfigurationError, Progress, Schedule
from kdengine.api.metric import mode_in_name
from kdengine.schedules.numbers import finite


class OnMetric(Schedule):
    """``start``, multiplied by ``factor`` whenever a metric has not improved for ``patience`` evaluations.

    An evaluation counts once however many steps see it: it is recognised by ``metrics["step"]``, the step at which it
    ran (without that key, by the epoch in which it is first seen). One that leaves the metric undefined does not count;
    NaN and infinity count as no improvement.

    Args:
        metric: name of the evaluation's metric to follow.
        start: value until the first change.
        factor: what the value is multiplied by when the metric stalls.
        patience: evaluations in a row without improvement that make a change.
        mode: ``"max"`` if a higher metric is better, ``"min"`` if a lower one is; by the metric's name when absent:
            ``"min"`` for a loss, an error, a perplexity, else ``"max"``.
        threshold: an improvement is a difference larger than this.

    Example:
        >>> schedule = OnMetric("top1", start=4.0, factor=0.5, patience=1)
        >>> [schedule.value(Progress(step=s, steps=9, metrics={"top1": 0.5, "step": s})) for s in (1, 2, 2, 3)]
        [4.0, 2.0, 2.0, 1.0]
    """

    def __init__(
        self,
        metric: str,
        start: float,
        factor: float,
        patience: int,
        mode: Literal["max", "min"] | None = None,
        threshold: float = 0.0,
    ) -> None:
        if patience < 1:
            raise ConfigurationError(f"expected patience to be at least 1 evaluation, got {patience}")
        mode = mode or mode_in_name(metric) or "max"
        if mode not in ("max", "min"):
            raise ConfigurationError(f"expected mode 'max' or 'min', got {mode!r}")
        if threshold < 0.0:
            raise ConfigurationError(f"expected threshold to be 0 or more, got {threshold}")
        self.metric = self.follows = metric
        self.factor, self.patience, self.mode, self.threshold = finite("factor", factor), patience, mode, threshold
        self.current = finite("start", start)
        self.best: float | None = None
        self.stalled = 0
        self.evaluation: float | None = None

    def value(self, progress: Progress) -> float:
        """The value after every evaluation seen so far."""
        metrics: Mapping[str, float | None] = progress.metrics
        if metrics:
            evaluation = metrics.get("step")
            evaluation = float(progress.epoch) if evaluation is None else float(evaluation)
            if evaluation != self.evaluation:
                self.evaluation = evaluation
                self._take_in(metrics)
        return self.current

    def _take_in(self, metrics: Mapping[str, float | None]) -> None:
        value = metrics.get(self.metric)
        if value is None:
            if self.best is None:  # most likely a wrong name, which would otherwise never do anything
                raise ConfigurationError(
                    f"schedule on_metric follows {self.metric!r}, for which the evaluation has no value; "
                    f"it has values for: {', '.join(sorted(set(metrics) - {'step'})) or 'nothing'}"
                )
            return
        if self._improves(value):
            self.best, self.stalled = value, 0
            return
        self.stalled += 1
        if self.stalled == self.patience:
            self.current, self.stalled = self.current * self.factor, 0

    def _improves(self, value: float) -> bool:
        if self.best is None or not math.isfinite(value):
            return math.isfinite(value)
        gain = value - self.best if self.mode == "max" else self.best - value
        return gain > self.threshold

    def state_dict(self) -> dict[str, Any]:
        """The value, the best metric, evaluations since then and the last evaluation seen."""
        return {
            "current": self.current,
            "best": self.best,
            "stalled": self.stalled,
            "evaluation": self.evaluation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.current, self.best = state["current"], state["best"]
        self.stalled, self.evaluation = state["stalled"], state["evaluation"]
