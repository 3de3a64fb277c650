"""Learning-rate schedules: torch's own, by name, stepped at every optimizer step.

A recipe gives durations in epochs, and the decay ``gamma`` of ``exponential`` per epoch; horizons are the fit's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.optim import lr_scheduler

from kdengine.api import ConfigurationError
from kdengine.api.errors import nearest, warn
from kdengine.recipe.problems import Problem
from kdengine.recipe.schema import LRScheduleTable
from kdengine.recipe.signature import arguments, check_arguments

NAMES = {
    "constant": "ConstantLR",
    "cosine": "CosineAnnealingLR",
    "linear": "LinearLR",
    "polynomial": "PolynomialLR",
    "exponential": "ExponentialLR",
    "step": "StepLR",
    "multistep": "MultiStepLR",
    "onecycle": "OneCycleLR",
    "restarts": "CosineAnnealingWarmRestarts",
    "plateau": "ReduceLROnPlateau",
}
"""Short names of torch's classes."""

HORIZONS = ("T_max", "total_iters", "total_steps")
"""Arguments that default to the length of the fit, or of what the warm-up leaves of it."""

IN_EPOCHS = ("step_size", "milestones", "T_0", "T_max", "total_iters")
"""Arguments that a recipe gives in epochs and torch takes in steps."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "constant": {"factor": 1.0},
    "linear": {"start_factor": 1.0, "end_factor": 0.0},
}


def check_rate(table: LRScheduleTable, path: tuple[str, ...]) -> list[Problem]:
    """Problems of a learning-rate schedule's table."""
    scheduler = _class(table.use)
    if scheduler is None:
        return [Problem((*path, "use"), f"unknown learning-rate schedule; {nearest(table.use, NAMES)}", table.use)]
    supplied = (*HORIZONS, "max_lr")
    own = type(table).model_fields
    problems = check_arguments(arguments(scheduler, skip=1), table.arguments, path, supplied=supplied, beside=own)[1]
    if table.warmup and scheduler is lr_scheduler.ReduceLROnPlateau:
        problems.append(Problem((*path, "warmup"), "torch cannot put a warm-up before plateau", table.warmup))
    return problems


def make_rate(
    table: LRScheduleTable, steps_per_epoch: int, *, higher_is_better: bool = True
) -> Callable[[torch.optim.Optimizer, int], Any] | None:
    """A factory ``fn(optimizer, steps)`` for the engine; None for a constant rate without warm-up.

    Args:
        table: a checked table.
        steps_per_epoch: turns what the recipe gives in epochs into steps.
        higher_is_better: of the metric that ``plateau`` watches.
    """
    warmup = round(table.warmup * steps_per_epoch)
    if table.use == "constant" and not table.arguments and not warmup:
        return None
    return Rate(table, steps_per_epoch, warmup, "max" if higher_is_better else "min")


def warn_of_warmup(table: LRScheduleTable, epochs: int) -> None:
    """Warn of a warm-up that leaves nothing of a fit to what comes after it."""
    if table.warmup >= epochs:
        warn(
            f"[lr_schedule] the warmup of {table.warmup:g} epochs takes all of the fit's {epochs}: the learning rate "
            "never gets to its height"
        )


@dataclass(frozen=True)
class Rate:
    """Makes the scheduler that a table means.

    Attributes:
        table: a checked table.
        steps_per_epoch: turns epochs into steps.
        warmup: steps of the warm-up.
        mode: of the metric that ``plateau`` watches.
        counts_epochs: tells the engine that durations were given in epochs, and none of them by mistake.
    """

    table: LRScheduleTable
    steps_per_epoch: int
    warmup: int
    mode: str
    counts_epochs: ClassVar[bool] = True

    def __call__(self, optimizer: torch.optim.Optimizer, steps: int) -> Any:
        """Make it for an optimizer and the steps of a fit."""
        try:
            main = _make(self.table, optimizer, max(1, steps - self.warmup), self.steps_per_epoch, self.mode)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"[lr_schedule] {self.table.use} cannot be made: {error}") from error
        if not self.warmup:
            return main
        start = lr_scheduler.LinearLR(optimizer, start_factor=1.0 / self.warmup, total_iters=self.warmup)
        return lr_scheduler.SequentialLR(optimizer, [start, main], milestones=[self.warmup])


def _make(table: LRScheduleTable, optimizer: torch.optim.Optimizer, steps: int, steps_per_epoch: int, mode: str) -> Any:
    scheduler = _class(table.use)
    assert scheduler is not None, "check_rate refuses unknown names"
    known = arguments(scheduler, skip=1)
    values: dict[str, Any] = {name: steps for name in HORIZONS if name in known}
    values.update(_DEFAULTS.get(table.use, {}))
    if "max_lr" in known:
        values["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    if scheduler is lr_scheduler.ReduceLROnPlateau:
        values["mode"] = mode
    for name, value in table.arguments.items():
        values[name] = _in_steps(value, steps_per_epoch) if name in IN_EPOCHS else value
    if scheduler is lr_scheduler.ExponentialLR:
        values["gamma"] **= 1.0 / steps_per_epoch
    return scheduler(optimizer, **values)


def _in_steps(epochs: Any, steps_per_epoch: int) -> Any:
    if isinstance(epochs, list):
        return [round(epoch * steps_per_epoch) for epoch in epochs]
    return round(epochs * steps_per_epoch)


def _class(name: str) -> type[Any] | None:
    """The class of a short name, or of torch's own."""
    found = getattr(lr_scheduler, NAMES.get(name, name), None)
    is_scheduler = isinstance(found, type) and issubclass(found, lr_scheduler.LRScheduler)
    return found if is_scheduler and found is not lr_scheduler.LRScheduler else None
