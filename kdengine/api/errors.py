"""The exceptions a user can meet, and the nearest known name for a mistyped one."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_INNER = ("kdengine", "torch", "contextlib", "threading")
"""Packages whose frames lie between the line of the user and a warning."""


class KDEngineError(Exception):
    """Base of every exception that kdengine defines."""


class ConfigurationError(KDEngineError, ValueError):
    """An argument, a recipe or a plugin's contribution cannot be used; the message says how to mend it."""


class LossError(ConfigurationError):
    """A loss cannot be used in a fit as it is given; the message begins with its place.

    Attributes:
        reason: what is wrong, without the place.
        place: keys from the top of a recipe: ``("losses", label)``, and the argument where one is to blame.

    Example:
        >>> print(LossError("there is no module 'layer9'", "hint", "student"))
        losses.hint.student: there is no module 'layer9'
    """

    def __init__(self, reason: object, label: str, argument: str | None = None) -> None:
        self.reason = str(reason)
        self.place = ("losses", label) if argument is None else ("losses", label, argument)
        super().__init__(f"{'.'.join(self.place)}: {self.reason}")

    def __reduce__(self) -> tuple[type[LossError], tuple[str, ...]]:
        """Errors travel between processes."""
        return type(self), (self.reason, *self.place[1:])


class LossFailedError(LossError):
    """A loss raised while it ran; its exception is the cause.

    Attributes:
        plugin: distribution and version, or file, of the loss's code; None for a builtin.
        step: the optimizer step that was under way, counted from 1, or None outside of training.
    """

    plugin: str | None = None
    step: int | None = None

    def note_step(self, step: int) -> None:
        """Say in which step it happened."""
        self.step, self.reason = step, f"{self.reason} (at step {step})"
        self.args = (f"{'.'.join(self.place)}: {self.reason}",)


class InputsError(ConfigurationError):
    """A model cannot take the inputs that it was given.

    Attributes:
        problem: what is wrong, behind the words ``the student``.
        example: a function that would make inputs that fit, as it is written in Python; empty where none would.
        role: whose inputs they are: the student's or the teacher's; ``"model"`` where that is not known.
    """

    def __init__(self, problem: str, example: str = "", role: str = "model") -> None:
        self.problem, self.example, self.role = problem, example, role
        advice = (
            f". Where student and teacher take different inputs, give the {role} its own, made of the batch's: "
            f"Engine({role}_inputs={example})"
        )
        super().__init__(f"the {role} {problem}" + (advice if example and role != "model" else ""))

    def __reduce__(self) -> tuple[type[InputsError], tuple[str, ...]]:
        """Errors travel between processes."""
        return type(self), (self.problem, self.example, self.role)

    def of(self, role: str) -> InputsError:
        """The same error, which says whose inputs they are."""
        return type(self)(self.problem, self.example, role)


@contextmanager
def in_loss(label: str, argument: str | None = None) -> Iterator[None]:
    """What goes wrong in here is said of a loss: a ValueError becomes a LossError, any other error gets a note."""
    try:
        yield
    except ValueError as error:
        raise of_loss(error, label, argument) from error
    except Exception as error:
        error.add_note(f"raised by losses.{label}")
        raise


def of_loss(error: ValueError, label: str, argument: str | None = None) -> LossError:
    """The error to raise in place of one that came from a loss."""
    return error if isinstance(error, LossError) else LossError(error, label, argument)


class CheckpointError(KDEngineError):
    """A checkpoint, a cache or a run directory cannot be read, or belongs to something else."""


class NonFiniteError(KDEngineError, ArithmeticError):
    """A loss term or a gradient became NaN or infinite under the policy ``raise``."""


class ProcessError(KDEngineError):
    """Another process of the same training failed or was lost; the message names it."""


class PluginError(KDEngineError):
    """A plugin failed; the original exception is the cause.

    Attributes:
        plugin: name under which the plugin is registered.
        hook: hook or component that failed, or None when it failed to import.
        step: optimizer step, or None outside of training.
    """

    def __init__(self, message: str, *, plugin: str, hook: str | None = None, step: int | None = None) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.hook = hook
        self.step = step


class KDEngineWarning(UserWarning):
    """Something works, but is probably not meant; the message says what to write where it is."""


def warn(message: str) -> None:
    """Warn the user, at the line of their own code that led here."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _INNER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, KDEngineWarning, stacklevel=level)


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is nearest to a mistyped one, or list what is known.

    >>> nearest("temprature", ["temperature", "weight"])
    "did you mean 'temperature'?"
    >>> nearest("zzz", ["b", "a"])
    'known: a, b'
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + (", ".join(names) if names else "none")
