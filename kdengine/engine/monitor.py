"""Which metric decides the best evaluation, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from kdengine.api import ConfigurationError, Metric
from kdengine.api.errors import nearest
from kdengine.api.metric import mode_in_name, mode_of
from kdengine.engine.notices import Notices
from kdengine.engine.settings import MonitorMode, Settings


class Monitor:
    """The metric that decides: named by the user, else the first of an evaluation.

    Its direction is what the user says (``monitor_mode``), else what the metric knows of itself, else what the
    ``ReduceLROnPlateau`` that follows it says, else what its name says, else ``"max"``. A direction that was only read
    from a name is told once.

    Args:
        settings: of the fit.
        metrics: of the fit, by name.
        notices: of the engine.
    """

    def __init__(self, settings: Settings, metrics: Mapping[str, Metric], notices: Notices) -> None:
        self.notices = notices
        self.given = settings.monitor
        self.given_mode = settings.monitor_mode
        self.metrics = metrics
        self.plateau: MonitorMode | None = None
        self._modes: dict[str, MonitorMode] = {}

    def check(self, evaluation: Any, scheduler: Any) -> None:
        """Refuse, before training, what an evaluation could not decide by.

        Args:
            evaluation: what the user gave to ``fit``.
            scheduler: the learning-rate scheduler.

        Raises:
            ConfigurationError: the monitored metric cannot be there, or the scheduler goes another way.
        """
        if isinstance(scheduler, ReduceLROnPlateau):
            self._check_plateau(evaluation, scheduler)
            self.plateau = scheduler.mode
        if evaluation is None or callable(evaluation):
            return
        if self.given is not None and not self.may_give(self.given):
            raise ConfigurationError(
                f"monitor {self.given!r} is not among the metrics; {nearest(self.given, self.metrics)}"
            )
        if (name := self.given or next(iter(self.metrics), None)) is not None and self.may_give(name):
            self.mode(name)

    def _check_plateau(self, evaluation: Any, scheduler: ReduceLROnPlateau) -> None:
        if evaluation is None:
            raise ConfigurationError(
                "ReduceLROnPlateau is stepped at evaluations, but fit was given none: fit(loader, evaluation, ...)"
            )
        if not callable(evaluation) and not self.metrics:
            raise ConfigurationError(
                'ReduceLROnPlateau follows the monitored metric, but there is none: Engine(metrics={"top1": "top1"})'
            )

    def may_give(self, name: str) -> bool:
        """Whether a metric of that name may come; one that gives several numbers names them after a dot."""
        return name in self.metrics or name.split(".")[0] in self.metrics

    def name(self, values: Iterable[str]) -> str | None:
        """The name of the deciding metric among those of an evaluation; None where there are none.

        Raises:
            ConfigurationError: the evaluation does not have it.
        """
        names = list(values)
        if self.given is not None and self.given not in names:
            raise ConfigurationError(
                f"monitor {self.given!r} is not among the evaluation's metrics {sorted(names)}; "
                f"{nearest(self.given, names)}"
            )
        return self.given or next(iter(names), None)

    def mode(self, name: str) -> MonitorMode:
        """Which way a metric is better.

        Raises:
            ConfigurationError: the scheduler that follows it goes the other way.
        """
        if name not in self._modes:
            self._modes[name] = self._find_mode(name)
        return self._modes[name]

    def _find_mode(self, name: str) -> MonitorMode:
        known = self._known(name)
        in_name = mode_in_name(name)
        found = self.given_mode or known or in_name or self.plateau or "max"
        if self.plateau not in (None, found):
            raise ConfigurationError(
                f"ReduceLROnPlateau has mode={self.plateau!r} (torch's default is 'min'), but {name!r}, which it "
                f"follows, is better when it is {_WORDS[found]}; write ReduceLROnPlateau(..., mode={found!r}), or "
                f"Engine(monitor_mode={self.plateau!r}) if that is the way it improves"
            )
        if self.given_mode is not None and known not in (None, found):
            self.notices.once(f"monitor_mode={found!r} is the opposite of what the metric {name!r} says of itself")
        elif self.given_mode is None and known is None and found == "min" and in_name != self.plateau:
            self.notices.once(
                f"nothing says which way {name!r} is better; by {'its name' if in_name else 'ReduceLROnPlateau'} the "
                "lowest value is taken for the best. Write Engine(monitor_mode='min'), in a recipe "
                "evaluate.monitor_mode, or 'max' if it is the highest"
            )
        return found

    def _known(self, name: str) -> MonitorMode | None:
        owner, _, part = name.partition(".")
        metric = self.metrics.get(name) or self.metrics.get(owner)
        return None if metric is None else mode_of(metric, part if name not in self.metrics else "")

    def better(
        self, best: dict[str, Any] | None, values: Mapping[str, float | None], *, step: int, epoch: int
    ) -> dict[str, Any] | None:
        """The best evaluation so far: the one before, or this one.

        A value that is undefined or not finite is never the best, and a best of another metric (a resume may change
        what is monitored) is none.
        """
        if (name := self.name(values)) is None:
            return best
        mode, value = self.mode(name), values[name]
        if best is not None and (best["metric"], best.get("mode", mode)) != (name, mode):
            best = None
        if value is None or not math.isfinite(value):
            return best
        sign = -1.0 if mode == "min" else 1.0
        if best is None or sign * value > sign * best["value"]:
            return {"metric": name, "value": value, "step": step, "epoch": epoch, "mode": mode}
        return best

    def followed(self, values: Mapping[str, float | None]) -> float | None:
        """What a scheduler on a plateau is told: NaN, which is never an improvement, for all that is not finite."""
        name = self.name(values)
        value = None if name is None else values[name]
        return value if value is None or math.isfinite(value) else math.nan


def finite_best(best: dict[str, Any] | None) -> dict[str, Any] | None:
    """The best of a checkpoint; None for one that no later value could have beaten."""
    return best if best is not None and math.isfinite(best["value"]) else None


def likely_mode(name: str, metric: Any) -> MonitorMode:
    """Which way a metric (or its class) is better, where the user does not say it."""
    return mode_of(metric) or mode_in_name(name) or "max"


_WORDS = {"max": "higher", "min": "lower"}
