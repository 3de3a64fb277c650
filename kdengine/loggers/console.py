"""Records for a person who watches."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from kdengine.api import ConfigurationError, Logger, RunInfo

OWN_PLACE = ("epoch", "epochs", "step", "steps", "items_per_second")
"""Keys that a line shows in a place and form of their own."""

REDRAW = 0.1
"""Seconds between two redraws of the progress bar."""


class Console(Logger):
    """Progress, evaluations and notes on standard output.

    On a terminal, one progress bar with the loss terms, the last evaluation, the rate and the time left; elsewhere a
    plain line every few seconds, of progress or of an evaluation. The last evaluation of a fit and every note get a
    line of their own. An output that was closed is left alone.

    Args:
        every: seconds between two plain lines.
        quiet: leave out the progress; every evaluation and note is still printed.
    """

    def __init__(self, every: float = 5.0, quiet: bool = False) -> None:
        if every < 0:
            raise ConfigurationError(f"expected every to be 0 seconds or more, got {every}")
        self.every = every
        self.quiet = quiet
        self._run = RunInfo("", None, 0, 0)
        self._bar: Any = None
        self._began = 0.0
        self._shown = float("-inf")
        self._waiting: str | None = None
        self._evaluation: str | None = None

    def start(self, run: RunInfo) -> None:
        """Begin a bar, or the first line."""
        self._stop_bar()
        self._run, self._began = run, time.monotonic()
        self._shown, self._waiting, self._evaluation = float("-inf"), None, None
        if not self.quiet and _is_terminal():
            self._bar = _make_bar(run)

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """Show progress or an evaluation."""
        if kind == "train":
            if not self.quiet:
                self._progress(record, step)
            return
        name = kind if kind != "evaluate" else "evaluation"
        line = f"{self._run.name}  {name} at step {step}  {_terms(record)}"
        if kind != "evaluate" or self.quiet:
            self._print(line)
        else:
            self._evaluated(record, line)

    def message(self, text: str) -> None:
        """Print one line."""
        self._print(text)

    def finish(self, status: str) -> None:
        """Print what has not been shown yet and how the fit ended."""
        if self._bar is None and self._waiting is not None:
            self._print(self._waiting)
        self._stop_bar()
        if self._evaluation is not None:
            self._print(self._evaluation)
        self._waiting = self._evaluation = None
        if not self.quiet:
            self._print(f"{self._run.name}  {status} after {_duration(time.monotonic() - self._began)}")

    def _progress(self, record: Mapping[str, Any], step: int) -> None:
        now = time.monotonic()
        due = now - self._shown >= (self.every if self._bar is None else REDRAW)
        if self._bar is not None:
            self._update_bar(record, step, redraw=due)
        else:
            line = self._line(record, step, now)
            self._waiting = None if due else line
            if due:
                self._print(line)
        if due:
            self._shown = now

    def _evaluated(self, record: Mapping[str, Any], line: str) -> None:
        """Show an evaluation as progress; the last one is kept for the end of the fit."""
        now = time.monotonic()
        self._waiting, self._evaluation = None, line
        if self._bar is not None:
            self._change_bar(result=_terms(record))
        elif now - self._shown >= self.every:
            self._print(line)
            self._shown, self._evaluation = now, None

    def _line(self, record: Mapping[str, Any], step: int, now: float) -> str:
        run = self._run
        parts = [run.name, f"step {step}/{run.steps}"]
        if _is_number(record.get("epoch")):
            parts.append(f"epoch {record['epoch']:g}/{run.epochs}")
        parts.append(_terms(record))
        if _is_number(record.get("items_per_second")):
            parts.append(f"{record['items_per_second']:,.0f} items/s")
        if step > run.step:
            left = (now - self._began) / (step - run.step) * max(0, run.steps - step)
            parts.append(f"{_duration(left)} left")
        return "  ".join(part for part in parts if part)

    def _update_bar(self, record: Mapping[str, Any], step: int, *, redraw: bool) -> None:
        rate = record.get("items_per_second")
        shown = f"{rate:,.0f} items/s" if _is_number(rate) else ""
        self._change_bar(redraw=redraw, completed=step, terms=_terms(record), rate=shown)

    def _change_bar(self, *, redraw: bool = True, **fields: Any) -> None:
        try:
            self._bar.update(self._bar.task_ids[0], **fields)
            if redraw:
                self._bar.refresh()
        except (OSError, ValueError):  # the terminal is gone
            self._stop_bar()

    def _print(self, text: str) -> None:
        try:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            elif sys.stdout is not None:  # None under pythonw
                print(text, flush=True)
        except (OSError, ValueError):  # closed, or a pipe whose reader left
            self._stop_bar()

    def _stop_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            try:
                bar.refresh()
                bar.stop()
            except (OSError, ValueError):
                pass


def _make_bar(run: RunInfo) -> Any:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TextColumn("{task.fields[terms]}", markup=False),
        TextColumn("{task.fields[result]}", markup=False),
        console=Terminal(file=sys.stdout),
        auto_refresh=False,  # no thread: data workers may be forked at any time
    )
    bar.add_task(run.name, total=run.steps, completed=run.step, rate="", terms="", result="")
    bar.start()
    return bar


def _is_terminal() -> bool:
    if os.environ.get("TERM") in ("dumb", "unknown"):  # cannot redraw a line
        return False
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # closed
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _terms(record: Mapping[str, Any]) -> str:
    """The record's values in its own order, four significant digits each.

    >>> _terms({"loss": 0.51239, "kd.soft": 0.4, "top1": None, "epoch": 1})
    'loss 0.5124  kd.soft 0.4  top1 undefined'
    """
    return "  ".join(f"{key} {_shown(value)}" for key, value in record.items() if not _is_elsewhere(key))


def _is_elsewhere(key: str) -> bool:
    """Whether a line shows a key in another place, or leaves it to the records."""
    return key in OWN_PLACE or key.startswith("gradient_share.")


def _shown(value: Any) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4g}" if _is_number(value) else str(value)


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(3725.2), _duration(4.2)
    ('1:02:05', '0:04')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
