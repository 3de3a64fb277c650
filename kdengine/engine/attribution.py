"""Name a loss that raises: its label, where its code comes from, and where in that code it happened."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kdengine.api import ConfigurationError, Loss
from kdengine.api.errors import KDEngineError, LossFailedError, of_loss
from kdengine.api.hooks import PASSES
from kdengine.api.loss import CallableLoss

PASSED = (torch.OutOfMemoryError, KDEngineError)
"""What is raised on as it is: others react to the class of the first, and the second says what to do itself."""


@contextmanager
def raised_by(label: str, loss: Loss) -> Iterator[None]:
    """Attribute what goes wrong in here to a loss."""
    try:
        yield
    except Exception as error:
        named = attributed(error, label, loss)
        if named is error:
            raise
        raise named from error


def attributed(error: Exception, label: str, loss: Loss) -> Exception:
    """Make the exception to raise in place of one that came out of a loss.

    Args:
        error: what the loss raised.
        label: of the loss.
        loss: the loss itself.

    Returns:
        a :class:`~kdengine.api.errors.LossError` with label, class, plugin and line; the exception itself, with a note,
        where its class means something to those who catch it.
    """
    if isinstance(error, ConfigurationError):
        return of_loss(error, label)
    if isinstance(error, (*PASSED, *passed_by(loss))):
        error.add_note(f"raised by losses.{label}")
        return error
    home = origin(loss)
    who = name_of(loss) if home is None else f"{name_of(loss)} ({home})"
    words = str(error) or "without a message"
    failure = LossFailedError(f"{who} raised {type(error).__name__}{place_of(error)}: {words}", label)
    failure.plugin = home
    return failure


def passed_by(loss: Loss) -> tuple[type[BaseException], ...]:
    """The exceptions that a loss, or the plugin's module that it is in, means for those who catch them."""
    module = sys.modules.get(type(loss).__module__)
    named: Any = getattr(loss, PASSES, getattr(module, PASSES, ()))
    return named if isinstance(named, tuple) else (named,)


def name_of(loss: Loss) -> str:
    """The loss in words: its class, or the criterion that ``from_callable`` wraps."""
    if isinstance(loss, CallableLoss):
        return getattr(loss.fn, "__qualname__", type(loss.fn).__name__)
    return type(loss).__qualname__


def origin(loss: Loss) -> str | None:
    """Where a loss's code comes from: distribution and version, else its file; None for a builtin."""
    code: Any = loss.fn if isinstance(loss, CallableLoss) else type(loss)
    if not (inspect.isclass(code) or inspect.isroutine(code)):
        code = type(code)
    module: str = getattr(code, "__module__", None) or ""
    file = getattr(sys.modules.get(module), "__file__", None) or _file_of(code)
    if file is not None and Path(file).is_relative_to(Path(__file__).parents[1]):
        return None
    top = module.split(".")[0]
    if top and top != "kdengine" and (found := metadata.packages_distributions().get(top)):
        return f"{found[0]} {metadata.version(found[0])}"
    return file or module or None


def _file_of(code: object) -> str | None:
    try:
        return inspect.getsourcefile(code)  # type: ignore[arg-type]
    except (TypeError, OSError):
        return None


def place_of(error: BaseException) -> str:
    """Where in code that is neither PyTorch's nor the engine's an error arose: ``" at brier.py:24"``."""
    homes = (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(Path(__file__).parents[1] / "api"))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(homes)]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
