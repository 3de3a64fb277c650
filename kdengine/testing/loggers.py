"""The contract of a logger."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdengine.api import ConfigurationError, Logger, RunInfo
from kdengine.engine import codec
from kdengine.engine.loggers import FunctionLogger
from kdengine.testing.report import fail, name_of, require

RECORDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("train", {"epoch": 1, "loss": 0.5, "kd.soft": 0.25, "lr": 1e-3, "items_per_second": 1e4}),
    ("train", {"epoch": 1, "loss": math.nan, "kd.soft": math.inf, "phase": "warm-up", "flag": True}),
    ("evaluate", {"epoch": 1, "top1": 0.75, "agreement": None}),
)


def check_logger(factory: Callable[..., Any], /, **arguments: Any) -> None:
    """Check a logger: every kind of record, two fits after each other, a resume, a fit that writes nothing.

    Without a run directory a logger may refuse to start by a :class:`kdengine.ConfigurationError`. What it prints is
    swallowed.

    Args:
        factory: the logger's class, or a function that makes one or an ``fn(record, step=n)``.
        arguments: of the factory.

    Raises:
        AssertionError: the first thing that does not hold.

    Example:
        >>> from kdengine.loggers.jsonl import Jsonl
        >>> check_logger(Jsonl)
    """
    name = name_of(factory)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.redirect_stdout(io.StringIO()):
        out = Path(folder)
        logger = make(name, factory, arguments)
        for fit in ("baseline", "student"):
            _record(name, logger, RunInfo(fit, out / fit, 10, 2))
        _resume(name, factory, arguments, out / "resumed")
        nowhere = make(name, factory, arguments)
        with contextlib.suppress(ConfigurationError):
            nowhere.start(RunInfo("student", None, 10, 2))
            _record(name, nowhere, RunInfo("student", None, 10, 2), started=True)


def make(name: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> Logger:
    """A new logger."""
    made = factory(**arguments)
    if isinstance(made, Logger):
        return made
    if not callable(made) or isinstance(made, type):
        fail(name, f"gives a {type(made).__name__}; expected a kdengine.Logger or fn(record, step=n)")
    return FunctionLogger(made)


def _record(name: str, logger: Logger, run: RunInfo, *, started: bool = False, status: str = "finished") -> None:
    """One fit; the records must stay as they are, since other loggers get them too."""
    if not started:
        _make_directory(run)
        _call(name, "start", lambda: logger.start(run))
    for step, (kind, record) in enumerate(RECORDS, run.step + 1):
        given = copy.deepcopy(record)
        _call(name, f"log of {record}", partial(logger.log, given, step=step, kind=kind))
        require(repr(given) == repr(record), name, f"log changed its record from {record} to {given}")
    _call(name, "message", lambda: logger.message("a note"))
    _call(name, "finish", lambda: logger.finish(status))


def _resume(name: str, factory: Callable[..., Any], arguments: dict[str, Any], out: Path) -> None:
    """A checkpoint in the middle, a crash, and a second process that goes on."""
    first = make(name, factory, arguments)
    run = RunInfo("student", out, 10, 2)
    _make_directory(run)
    first.start(run)
    kind, record = RECORDS[0]
    first.log(dict(record), step=1, kind=kind)
    try:
        tree, tensors = codec.encode(first.state_dict())
    except codec.UnsupportedState as error:
        fail(name, f"its state cannot be checkpointed: {error}", error)
    first.log(dict(record), step=2, kind=kind)
    first.finish("failed")
    second = make(name, factory, arguments)
    state = codec.decode(json.loads(json.dumps(tree)), tensors)
    _call(name, "load_state_dict before start", lambda: second.load_state_dict(state))
    _record(name, second, RunInfo("student", out, 10, 2, step=1))


def _make_directory(run: RunInfo) -> None:
    """The engine makes the run directory before a logger starts."""
    if run.out is not None:
        run.out.mkdir(parents=True, exist_ok=True)


def _call(name: str, what: str, function: Callable[[], None]) -> None:
    try:
        function()
    except Exception as error:
        fail(name, f"{what} raised {type(error).__name__}: {error}; a logger that fails is left out", error)
