"""The learning-rate scheduler of a fit, from an instance or a factory, and whether it fits the fit's steps."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kdengine.api import ConfigurationError
from kdengine.engine.notices import Notices
from kdengine.engine.optimizers import BROUGHT, Named, check_call, required_arguments

SchedulerLike: TypeAlias = Any

HORIZONS: Final = ("T_max", "total_iters", "total_steps", "T_0")
"""Arguments of torch's schedulers that say how many steps they take."""

PERIODS: Final = ("step_size", "total_size")
"""What torch's schedulers keep of the steps after which they do the same again."""

FACTORY_LINE = "lr_scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.{name}(optimizer, {arguments})"
"""What to write for a schedule as long as the fit."""

FAR: Final = 2
"""A horizon of so many times the fit's steps, or more, is a mistake rather than a choice."""

NOTHING: Final = 1e-6
"""A share of its highest rate at which a schedule no longer trains."""


def make_lr_scheduler(
    given: SchedulerLike,
    optimizer: torch.optim.Optimizer,
    named: Named,
    steps: int,
    epochs: int | None,
    notices: Notices,
) -> Any:
    """Call a factory ``fn(optimizer, steps)``; an instance must belong to the optimizer and to all its groups.

    Args:
        given: what the user gave.
        optimizer: of the fit.
        named: the parameters that train.
        steps: of the fit.
        epochs: of the fit, for a schedule that was counted in these; None for one of unknown length.
        notices: of the engine.

    Raises:
        ConfigurationError: it is no scheduler, has another interface, or would end in the middle of the fit.
    """
    if given is None:
        return None
    if _is_scheduler(given):
        _check_instance(given, optimizer, named)
        scheduler = given
    else:
        scheduler = _call(given, optimizer, steps)
    if scheduler is not None:
        _check_interface(scheduler)
        if epochs is not None:
            _check_end(scheduler, steps)
            if not getattr(given, "counts_epochs", False):  # a recipe's durations are in epochs, and made steps of
                warn_of_horizon(scheduler, steps, epochs, notices)
    return scheduler


def waits_for_metric(scheduler: Any) -> bool:
    """Whether a scheduler steps at evaluations, on a metric."""
    return isinstance(scheduler, ReduceLROnPlateau)


def _is_scheduler(given: Any) -> bool:
    return hasattr(given, "optimizer") and hasattr(given, "step") and not isinstance(given, type)


def _check_instance(given: Any, optimizer: torch.optim.Optimizer, named: Named) -> None:
    if given.optimizer is not optimizer:
        raise ConfigurationError("the lr_scheduler belongs to another optimizer than the one of this engine")
    if any(name.startswith(BROUGHT) for name, _ in named):
        raise ConfigurationError(
            "a loss brings parameters of its own (a projector), or the teacher learns too; they joined the "
            "optimizer after this lr_scheduler was made; pass factories instead: optimizer=lambda named: ..., "
            "lr_scheduler=lambda optimizer, steps: ..."
        )


def _call(given: Any, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    if not callable(given):
        raise ConfigurationError(
            f"lr_scheduler is {given!r}; expected a scheduler of torch, or a function that makes one: "
            + FACTORY_LINE.format(name="CosineAnnealingLR", arguments="steps")
        )
    _check_class(given)
    check_call("the lr_scheduler factory", given, optimizer=optimizer, steps=steps)
    made = given(optimizer, steps)
    if made is not None and not _is_scheduler(made):
        raise ConfigurationError(
            f"the lr_scheduler factory returned {'a class' if isinstance(made, type) else f'a {type(made).__name__}'}; "
            "expected a scheduler of torch.optim.lr_scheduler"
        )
    if made is not None and made.optimizer is not optimizer:
        raise ConfigurationError(
            f"the lr_scheduler factory returned a {type(made).__name__} of another optimizer than the one that it was "
            "given: " + FACTORY_LINE.format(name=type(made).__name__, arguments="...")
        )
    return made


def _check_class(given: Any) -> None:
    """A class of torch is called with the steps as its second argument, which must be a horizon.

    Raises:
        ConfigurationError: it is another number, such as the highest rate.
    """
    if not isinstance(given, type) or given.__module__ != lr_scheduler.__name__:
        return
    second = list(inspect.signature(given).parameters)[1]
    if second not in HORIZONS:
        arguments = "max_lr=0.1, total_steps=steps" if given is lr_scheduler.OneCycleLR else f"{second}=..."
        raise ConfigurationError(
            f"lr_scheduler is the class {given.__name__}, which would take the number of steps for its {second}; "
            "pass a function: " + FACTORY_LINE.format(name=given.__name__, arguments=arguments)
        )


def _check_interface(scheduler: Any) -> None:
    """Refuse what cannot be stepped after every update, as the schedulers of timm.

    Raises:
        ConfigurationError: its step needs arguments.
    """
    name = type(scheduler).__name__
    if not waits_for_metric(scheduler) and (needed := required_arguments(scheduler.step)):
        raise ConfigurationError(
            f"{name}.step() needs {', '.join(needed)}, as the schedulers of timm do; the engine calls step() after "
            "every optimizer step. Use one of torch: "
            + FACTORY_LINE.format(name="CosineAnnealingLR", arguments="steps")
        )
    for method in ("state_dict", "load_state_dict"):
        if not callable(getattr(scheduler, method, None)):
            raise ConfigurationError(f"the lr_scheduler {name} has no {method}(); checkpoints need it")


class Part(NamedTuple):
    """A scheduler, and for how many optimizer steps of the fit it is stepped."""

    scheduler: Any
    steps: int


def parts(scheduler: Any, steps: int) -> Iterator[Part]:
    """Yield the last of schedulers in sequence, and each of those that are chained."""
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        yield from parts(scheduler._schedulers[-1], steps - scheduler._milestones[-1])
    elif isinstance(scheduler, lr_scheduler.ChainedScheduler):
        for inner in scheduler._schedulers:
            yield from parts(inner, steps)
    else:
        yield Part(scheduler, steps)


def _check_end(scheduler: Any, steps: int) -> None:
    """Refuse the one scheduler of torch that raises when it is over, where it is over before the fit."""
    for part in parts(scheduler, steps):
        if isinstance(part.scheduler, lr_scheduler.OneCycleLR) and part.scheduler.total_steps < _last(part):
            raise ConfigurationError(
                f"OneCycleLR has total_steps={part.scheduler.total_steps} and raises after that many, but the fit has "
                f"{steps} optimizer steps. {_HINTS['OneCycleLR']}"
            )


def warn_of_horizon(scheduler: Any, steps: int, epochs: int, notices: Notices) -> None:
    """Compare what a scheduler knows of its own length with the steps of the fit."""
    if isinstance(scheduler, lr_scheduler.SequentialLR) and scheduler._milestones[-1] - scheduler.last_epoch >= steps:
        notices.once(
            f"the lr_scheduler changes to its last part at step {scheduler._milestones[-1]}, but the fit has {steps} "
            "optimizer steps; milestones count optimizer steps"
        )
        return
    for part in parts(scheduler, steps):
        part = part._replace(steps=_last(part))
        if message := _in_epochs(part, epochs) or _too_long(part) or _fades(part):
            name = type(part.scheduler).__name__
            notices.once(f"{message}. {_HINTS.get(name, 'It is stepped after every optimizer step, not every epoch')}")


def _last(part: Part) -> int:
    """The step of a scheduler's own count at which the fit ends; a fit before may have stepped it."""
    return part.steps + max(0, int(getattr(part.scheduler, "last_epoch", None) or 0))


_HINTS: Final = {
    name: "For the length of the fit: " + FACTORY_LINE.format(name=name, arguments=arguments)
    for name, arguments in {
        "CosineAnnealingLR": "steps",
        "PolynomialLR": "steps",
        "OneCycleLR": "max_lr=..., total_steps=steps",
        "LinearLR": "1.0, 0.0, total_iters=steps",
    }.items()
}


def horizon(scheduler: Any, names: Sequence[str] = HORIZONS) -> tuple[str, int] | None:
    """What says after how many steps a scheduler is through, and its value; None where nothing does."""
    for name in names:
        value = getattr(scheduler, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return name, int(value)
    milestones = getattr(scheduler, "milestones", None)
    if isinstance(milestones, Counter) and milestones:
        return "milestones", max(milestones)
    return None


def _warms_up(scheduler: Any) -> bool:
    """Whether a scheduler raises the rate at the beginning, and is meant to be short."""
    rises = isinstance(scheduler, lr_scheduler.LinearLR) and scheduler.end_factor >= scheduler.start_factor
    return rises or isinstance(scheduler, lr_scheduler.ConstantLR)


def _in_epochs(part: Part, epochs: int) -> str | None:
    """A horizon within the number of epochs, where an epoch has several steps, was counted in epochs."""
    found = horizon(part.scheduler)
    if found is None or _warms_up(part.scheduler) or found[1] > epochs or part.steps < FAR * max(epochs, found[1]):
        return None
    return (
        f"{type(part.scheduler).__name__} has {found[0]}={found[1]} and is stepped after every optimizer step: the fit "
        f"has {part.steps} steps in {epochs} epochs"
    )


def _too_long(part: Part) -> str | None:
    """A schedule that ends long after the fit leaves the rate where it is."""
    found = horizon(part.scheduler, (*HORIZONS, *PERIODS))
    if found is None or found[1] < FAR * part.steps:
        return None
    return (
        f"{type(part.scheduler).__name__} has {found[0]}={found[1]}, but the fit has {part.steps} optimizer steps "
        "(accumulated micro-batches make one): the schedule does not come to its end"
    )


def _fades(part: Part) -> str | None:
    """A rate that is next to nothing for half of the fit was decayed per epoch in its author's mind."""
    with suppress(Exception):  # the user's own function may know no such step
        rates = [rate_at(part.scheduler, step) for step in (0, 1, part.steps // 100, part.steps // 10)]
        known = [rate for rate in rates if rate is not None]
        half = rate_at(part.scheduler, part.steps // 2)
        if half is not None and known and abs(half) <= NOTHING * max(known):
            return (
                f"{type(part.scheduler).__name__} brings the learning rate from {max(known):.3g} to {half:.3g} by the "
                f"middle of the fit's {part.steps} optimizer steps"
            )
    return None


def rate_at(scheduler: Any, step: int) -> float | None:
    """The first group's rate after a number of steps, where a formula gives it; the scheduler stays as it is."""
    if isinstance(scheduler, lr_scheduler.LambdaLR):
        return float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step))
    closed: Callable[[], list[float]] | None
    there = copy.copy(scheduler)
    if (closed := getattr(there, "_get_closed_form_lr", None)) is None or isinstance(
        scheduler, lr_scheduler.CosineAnnealingLR
    ):
        return None
    there.last_epoch = step
    return float(closed()[0])
