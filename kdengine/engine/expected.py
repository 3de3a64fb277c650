"""What a fit expects of its evaluations, asked before training rather than after its first epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kdengine.api import ConfigurationError, Schedule
from kdengine.api.errors import nearest
from kdengine.engine.fit import Fit

TOO_MUCH: Final = 0.9
"""The share of the first weights in a moving average at the end of a fit that is a mistake rather than a choice."""


def check_expected(fit: Fit, evaluation: Any) -> None:
    """Refuse what no evaluation of the fit could give: a metric's teacher, what decides, what something waits for.

    Args:
        fit: as it was assembled.
        evaluation: what the user gave to ``fit``.

    Raises:
        ConfigurationError: it is missing.
    """
    check_average(fit)
    fit.monitor.check(evaluation, fit.lr_scheduler)
    check_followed(fit.objective.scheduled, fit.monitor.may_give, evaluation, list(fit.metrics))
    if evaluation is None or callable(evaluation):
        return
    taught = [name for name, metric in fit.metrics.items() if metric.needs_teacher]
    if taught and fit.models.source is None:
        raise ConfigurationError(
            f"the metric {taught[0]!r} compares the student with a teacher, but Engine(teacher=...) was not given"
        )
    if not (fit.metrics or fit.settings.gradient_shares):
        fit.notices.once(
            'fit was given an evaluation loader, but there is nothing to measure on it: Engine(metrics=["top1"])'
        )


def check_followed(schedules: Mapping[str, Schedule], may_give: Any, evaluation: Any, metrics: list[str]) -> None:
    """Refuse a schedule that follows a metric which no evaluation gives: it would hold its first value for ever."""
    for name, schedule in schedules.items():
        if (followed := schedule.follows) is None:
            continue
        if evaluation is None:
            raise ConfigurationError(
                f"the schedule of {name} follows the metric {followed!r}, but fit was given no evaluation: "
                "fit(loader, evaluation, ...)"
            )
        if not callable(evaluation) and not may_give(followed):
            raise ConfigurationError(
                f"the schedule of {name} follows {followed!r}, which is no metric here; {nearest(followed, metrics)}"
            )


def check_average(fit: Fit) -> None:
    """Warn of a moving average that a fit is too short for: what is evaluated and exported is where it began."""
    decay, steps = fit.settings.ema, fit.steps
    if decay is not None and (left := decay**steps) > TOO_MUCH:
        fit.notices.once(
            f"ema={decay} averages over about {1 / (1 - decay):,.0f} optimizer steps, but the fit has {steps}: "
            f"{left:.0%} of what is evaluated and exported are the weights of its first step; take a smaller decay"
        )
