"""The settings of a fit: name, limits and default of each, in one place.

:class:`kdengine.Engine` checks what it is given here, and the recipe's schema reads the same limits.
"""

from __future__ import annotations

import numbers
import operator
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from kdengine.api import ConfigurationError

NonFinitePolicy: TypeAlias = Literal["raise", "skip", "rollback"]
PrecisionName: TypeAlias = Literal["fp32", "bf16", "fp16"]
StrategyName: TypeAlias = Literal["ddp", "fsdp"]
MonitorMode: TypeAlias = Literal["max", "min"]


@dataclass(frozen=True, slots=True)
class Limit:
    """What a number may be.

    Attributes:
        unit: what it counts, for messages.
        whole: whether it must be a whole number.
        ge: smallest value.
        gt: bound that it must exceed.
        lt: bound that it must stay below.
        otherwise: what to write instead of a number that switches nothing off.
    """

    unit: str
    whole: bool = True
    ge: int | None = None
    gt: float | None = None
    lt: float | None = None
    otherwise: str = ""

    def check(self, name: str, value: Any) -> Any:
        """Return a value as a plain int or float.

        Raises:
            ConfigurationError: it is no number of this kind.
        """
        number = _as_whole(value) if self.whole else _as_real(value)
        if number is None or not self._holds(number):
            instead = f"; {self.otherwise}" if self.otherwise else ""
            raise ConfigurationError(f"{name} must be {self}, got {value!r}{instead}")
        return number

    def _holds(self, number: float) -> bool:
        return (
            (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.lt is None or number < self.lt)
        )

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.gt is not None and self.lt is not None:
            kind += f" between {self.gt:g} and {self.lt:g}"
        elif self.gt is not None:
            kind += f" above {self.gt:g}"
        elif self.ge is not None:
            kind += f", at least {self.ge}"
        return f"{kind} ({self.unit})"


def _as_whole(value: Any) -> int | None:
    """A whole number of any kind (NumPy's too) as an int; a boolean is none, nor is 2.0."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _as_real(value: Any) -> float | None:
    """A real number of any kind as a float; a boolean or a string is none."""
    if isinstance(value, bool):
        return None
    return float(value) if isinstance(value, numbers.Real) else None


LIMITS: Final = {
    "seed": Limit("it seeds every generator", ge=0, otherwise="None leaves the generators alone"),
    "clip": Limit("the largest gradient norm", whole=False, gt=0.0, otherwise="clip=None leaves gradients as they are"),
    "ema": Limit("the decay of the moving average", whole=False, gt=0.0, lt=1.0, otherwise="ema=None averages nothing"),
    "accumulate": Limit("micro-batches per optimizer step", ge=1),
    "log_every": Limit("optimizer steps between training records", ge=1, otherwise="loggers=[] is silent"),
    "evaluate_every": Limit(
        "epochs between evaluations", ge=1, otherwise="a fit without an evaluation is one that gets none"
    ),
    "checkpoint_every": Limit(
        "optimizer steps between checkpoints", ge=1, otherwise="None leaves it at the one of every epoch's end"
    ),
    "keep": Limit("checkpoints to keep, beside the best", ge=1, otherwise="without out= there are none"),
    "epochs": Limit("passes over the loader", ge=1),
}
"""What each number must be that a fit is given; None is left to who may give it."""

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "nonfinite": get_args(NonFinitePolicy),
    "precision": get_args(PrecisionName),
    "strategy": get_args(StrategyName),
    "monitor_mode": get_args(MonitorMode),
}
"""The values of each setting that is one of a few words."""

FLAGS: Final = ("compile", "gradient_shares", "trace_hooks")


def check_setting(name: str, value: Any) -> Any:
    """Return a setting's value as its plain type.

    >>> check_setting("log_every", 0)
    Traceback (most recent call last):
        ...
    kdengine.api.errors.ConfigurationError: log_every must be a whole number, at least 1 (optimizer steps between \
training records), got 0; loggers=[] is silent

    Raises:
        ConfigurationError: it means nothing.
    """
    if name in LIMITS:
        return LIMITS[name].check(name, value)
    if name in CHOICES:
        return _check_choice(name, value)
    return _check_flag(name, value) if name in FLAGS else value


def _check_choice(name: str, value: Any) -> Any:
    known = CHOICES[name]
    if isinstance(value, str) and value in known:
        return value
    *others, last = map(repr, known)
    raise ConfigurationError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")


def _check_flag(name: str, value: Any) -> bool:
    if not (isinstance(value, int | np.bool_) and value in (0, 1)):  # a word such as "reduce-overhead" is true too
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")
    return bool(value)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a fit runs; every field is an argument of :class:`kdengine.Engine`, where it is explained.

    Raises:
        ConfigurationError: a value means nothing, with what to write instead.
    """

    name: str = "student"
    seed: int = 0
    precision: PrecisionName = "fp32"
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    compile: bool = False
    nonfinite: NonFinitePolicy = "raise"
    strategy: StrategyName = "ddp"
    log_every: int = 50
    evaluate_every: int = 1
    checkpoint_every: int | None = None
    keep: int = 2
    monitor: str | None = None
    monitor_mode: MonitorMode | None = None
    gradient_shares: bool = False
    trace_hooks: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                object.__setattr__(self, field.name, check_setting(field.name, value))
        for name in ("name", "monitor"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "name"):
                raise ConfigurationError(f"{name} must be a string, got {value!r}")
