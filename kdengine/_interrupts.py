"""SIGTERM and SIGINT: what is under way is finished or undone, and a second signal leaves at once.

Where nothing must be finished, the first signal raises an exception right away. Inside :func:`deferred` it only takes
note, and the code there asks :func:`pending` at places where it can leave. Where it waits for what may never come, it
says so by :func:`lifted`, and the signal raises again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """SIGTERM; a program that does not catch it ends with exit code 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked to leave, at a place where a checkpoint can be taken.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class _Watch:
    """What this process knows of signals."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.received = 0
        self.deferrals = 0
        self.lifted = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a loader's worker, forked from here: its parent decides
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.received:
            leave_at_once(number)
        self.received = number
        if not self.deferrals:
            raise as_exception(number)
        if self.lifted:
            raise Interrupted(number)


_watch = _Watch()


def as_exception(number: int) -> BaseException:
    """The exception by which a program leaves after a signal.

    >>> as_exception(signal.SIGTERM).code
    143
    """
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


def leave_at_once(number: int) -> NoReturn:
    """End the process without cleaning up, and with it the workers that it has: nobody else would end a stuck one."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
    os._exit(128 + number)


def pending() -> int:
    """The signal that waits for a place to leave, or 0."""
    return _watch.received


@contextmanager
def watching() -> Iterator[None]:
    """Handle both signals while the context lasts, where the program has no handlers of its own.

    Only the main thread of a program can; in any other, and inside another ``watching``, this does nothing.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    theirs = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if theirs[number] in (signal.SIG_DFL, signal.default_int_handler)]
    if ours:
        _watch = _Watch()
    for number in ours:
        signal.signal(number, _watch.handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, theirs[number])
        if ours:
            _watch = _Watch()


@contextmanager
def deferred() -> Iterator[None]:
    """Take note of a signal and go on; it is raised at the end, if nothing before has left because of it."""
    watch = _watch
    watch.deferrals += 1
    try:
        yield
    finally:
        watch.deferrals -= 1
    if watch.received and not watch.deferrals:
        raise as_exception(watch.received)


@contextmanager
def lifted() -> Iterator[None]:
    """Inside :func:`deferred`, while nothing is under way: a signal raises :class:`Interrupted` at once."""
    watch = _watch
    if threading.current_thread() is not threading.main_thread():  # the signal would be raised in the main one
        yield
        return
    watch.lifted = True
    try:
        yield
    finally:
        watch.lifted = False
