"""What an exception says on the command line, and the exit code."""

from __future__ import annotations

import re
from typing import Final

from kdengine import _interrupts as interrupts
from kdengine.cli.blame import blame, message

USAGE, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143
"""Exit codes: what the user can mend, everything else that went wrong, Ctrl-C, and SIGTERM."""

DEBUG: Final = "Run again with --debug for the traceback"
_SYSTEM: Final = {
    r"DataLoader worker .*(Bus error|shared memory)": (
        "a data worker ran out of shared memory; give it more (docker run --shm-size=8g), or set data.workers = 0"
    ),
    r"DataLoader worker .*(exited unexpectedly|killed by signal)": (
        "a data worker was killed, most often by the system for want of memory; set fewer data.workers, or 0 to read "
        "in the main process"
    ),
    r"out of memory|[Cc]an(no|')t allocate memory|Unable to allocate": (
        "there is not enough memory; lower data.batch_size and raise train.accumulate by as much, which changes no "
        "gradient, or set train.precision = 'bf16'"
    ),
}
"""What the system does to a training, by what its exceptions say, and what helps."""


class CommandInterruptedError(Exception):
    """A signal; typer would leave with the exit code alone, without a word.

    Attributes:
        code: the exit code.
        word: what became of the command.
    """

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        terminated = isinstance(reason, interrupts.Terminated)
        self.code, self.word = (TERMINATED, "terminated") if terminated else (INTERRUPTED, "interrupted")
        for note in getattr(reason, "__notes__", ()):
            self.add_note(note)


def verdict(error: BaseException) -> tuple[int, str]:
    """The exit code and the message of an exception."""
    if isinstance(error, KeyboardInterrupt | interrupts.Terminated):
        error = CommandInterruptedError(error)
    if isinstance(error, CommandInterruptedError):
        return error.code, error.word
    code, text, advice = _judged(error)
    place = blame(error)
    if isinstance(error, OSError) and place is not None and place.plugin is None:
        place = None
    return code, "\n".join([text, *([str(place)] if place else []), *([advice] if advice else [])])


def _judged(error: BaseException) -> tuple[int, str, str]:
    """The exit code, the message and what to do, without the place that raised it."""
    from kdengine.api.errors import KDEngineError, NonFiniteError
    from kdengine.ops.library import EnvironmentSettingError, UnavailableError

    kind, text = message(error)
    if isinstance(error, NonFiniteError):
        return FAILURE, f"error: {text}", ""
    if isinstance(error, KDEngineError | EnvironmentSettingError | UnavailableError):
        return USAGE, f"error: {text}", ""
    if (advice := _from_the_system(error)) is not None:
        return FAILURE, f"error: {advice}", f"{kind}: {text.partition(chr(10))[0]}"
    if isinstance(error, OSError):
        return USAGE, f"error: {describe_os_error(error)}", ""
    return FAILURE, f"error: {kind}: {text}", _unexpected(error)


def _from_the_system(error: BaseException) -> str | None:
    """What helps against an exception that is neither a program's nor the user's doing, or None."""
    if isinstance(error, MemoryError):
        return list(_SYSTEM.values())[-1]
    if not isinstance(error, RuntimeError | OSError):
        return None
    return next((advice for pattern, advice in _SYSTEM.items() if re.search(pattern, str(error))), None)


def _unexpected(error: BaseException) -> str:
    """What to do about an exception that nobody has foreseen: a bug of kdengine's only where no other code ran."""
    if blame(error) is not None:
        return f"{DEBUG}."
    return (
        f"{DEBUG}; if recipe, data and machine are in order, this is a bug in kdengine: report it with the traceback."
    )


def describe_os_error(error: OSError) -> str:
    """What the system refused, and where: ``no space left on device: runs/digits``."""
    reason = error.strerror or str(error)
    place = f": {error.filename}" if error.filename is not None and str(error.filename) not in reason else ""
    return f"{reason[:1].lower()}{reason[1:]}{place}"
