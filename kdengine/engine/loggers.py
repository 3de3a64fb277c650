"""The loggers of a fit: names, instances and plain functions behind one face that never stops training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

from kdengine.api import ConfigurationError, Logger, RunInfo
from kdengine.host import Host

LoggerLike: TypeAlias = str | Logger | Callable[..., Any]


class FunctionLogger(Logger):
    """A plain ``fn(record, step=n)`` as a logger."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """Hand the record on, as a plain dict."""
        self.fn(dict(record), step=step)


def check_takes_step(name: str, fn: Callable[..., Any]) -> None:
    """Refuse a function that cannot be called as a logger is.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # of a function in C, nobody knows
        return
    try:
        signature.bind({}, step=0)
    except TypeError as error:
        raise ConfigurationError(
            f"the logger {name} is called as fn(record, step=n), which it does not take ({error}): "
            "loggers=[lambda record, step: ...]"
        ) from error


class Loggers:
    """Every logger of a fit. One that raises is reported once, through the others, and left alone from then on."""

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self.active = dict(loggers)
        self.failed: dict[str, str] = {}
        self.of_steps = {name for name, logger in loggers.items() if logger.steps}

    def _each(self, method: str, *args: Any, only: Collection[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """What a method of each returned, by logger name."""
        returned = {}
        for name, logger in list(self.active.items()):
            if only is not None and name not in only:
                continue
            try:
                returned[name] = getattr(logger, method)(*args, **kwargs)
            except Exception as error:
                del self.active[name]
                self.of_steps.discard(name)
                self.failed[name] = f"{type(error).__name__}: {error}"
                self.message(f"logger {name!r} failed in {method} and is left out from here on: {self.failed[name]}")
        return returned

    def start(self, run: RunInfo) -> None:
        """A fit begins or goes on."""
        self._each("start", run)

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """One record to every logger."""
        self._each("log", record, step=step, kind=kind)

    def log_step(self, record: Mapping[str, Any], *, step: int) -> None:
        """The record of one step, to those loggers that take them."""
        self._each("log", record, step=step, kind="step", only=self.of_steps)

    def message(self, text: str) -> None:
        """One line for a person."""
        self._each("message", text)

    def finish(self, status: str) -> None:
        """The fit ended."""
        self._each("finish", status)

    def state_dict(self) -> dict[str, Any]:
        """State by logger name."""
        return {name: state for name, state in self._each("state_dict").items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give back each logger's state; loggers may have changed since the checkpoint."""
        for name, logger in self.active.items():
            if name in state:
                logger.load_state_dict(state[name])


def make_loggers(given: Sequence[LoggerLike] | LoggerLike | None, host: Host, *, records: bool) -> Loggers:
    """Instantiate the loggers of one fit.

    Args:
        given: what the user asked for, a list or one; None for the console.
        host: finds loggers by name.
        records: whether the run directory's ``metrics.jsonl`` and ``steps.jsonl`` are written too.
    """
    if isinstance(given, str | Logger) or callable(given):
        given = [given]
    wanted: list[LoggerLike] = ["console"] if given is None else list(given)
    if records:
        wanted += [name for name in ("jsonl", "steps") if name not in wanted]
    made: dict[str, Logger] = {}
    for item in wanted:
        name, logger = _make(item, host)
        made[name if name not in made else f"{name}-{len(made)}"] = logger
    return Loggers(made)


def _make(item: LoggerLike, host: Host) -> tuple[str, Logger]:
    if isinstance(item, str):
        name, item = item, host.component("loggers", item).load()()
    else:
        name = getattr(item, "__name__", type(item).__name__.lower())
    if isinstance(item, Logger):
        return name, item
    if callable(item) and not isinstance(item, type):
        check_takes_step(name, item)
        return name, FunctionLogger(item)
    raise ConfigurationError(f"expected a logger's name, a kdengine.Logger or fn(record, step=n), got {item!r}")
