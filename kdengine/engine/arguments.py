"""What a user may give in several forms, as the one form that the engine uses."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from kdengine._paths import expanded
from kdengine.api import BatchTransform, ConfigurationError, Loss, Schedule
from kdengine.api.errors import warn

F = TypeVar("F", bound=Callable[..., Any])


def student_module(given: Any) -> nn.Module:
    """Return the student.

    Raises:
        ConfigurationError: it is no module.
    """
    if not isinstance(given, nn.Module):
        made = " (a class or factory: call it first)" if callable(given) else ""
        raise ConfigurationError(f"the student must be a torch.nn.Module, got {type(given).__name__}{made}")
    return given


def weights_by_label(given: Any, losses: Mapping[str, Loss]) -> dict[str, float | Schedule]:
    """Read the losses' weights: by label, or one for each loss in their order.

    >>> weights_by_label([0.9, 0.1], {"kd": None, "ce": None})
    {'kd': 0.9, 'ce': 0.1}

    Raises:
        ConfigurationError: they are not as many as the losses, or one is no weight.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        given = _in_order(given, losses)
    weights = {label: _weight(label, value) for label, value in given.items()}
    if losses and all(weights.get(label, 1.0) == 0.0 for label in losses):
        warn("every loss has the weight 0, so nothing is learned; a weight is 1 where none is given")
    return weights


def _in_order(given: Any, losses: Mapping[str, Loss]) -> dict[str, Any]:
    line = "weights={" + ", ".join(f"{label!r}: 1.0" for label in losses) + "}"
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigurationError(f"weights is a {type(given).__name__}; expected a number for each loss: {line}")
    if len(given) != len(losses):
        raise ConfigurationError(f"weights has {len(given)} numbers for {len(losses)} losses; name them: {line}")
    return dict(zip(losses, given, strict=True))


def _weight(label: str, value: Any) -> float | Schedule:
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Tensor) and value.requires_grad:
        raise ConfigurationError(
            f"weights[{label!r}] is a tensor that requires a gradient; a weight does not learn. Use a number, a "
            "schedule, or value.item()"
        )
    if isinstance(value, numbers.Real) or (isinstance(value, Tensor) and value.numel() == 1):
        number = float(value)
        if math.isfinite(number):
            return number
    raise ConfigurationError(
        f"weights[{label!r}] must be a finite number or a schedule such as kdengine.Linear(1.0, 0.0), got {value!r}"
    )


def batch_transforms(given: Any) -> list[BatchTransform]:
    """Read the transforms of a step's batch: a list, or one.

    Raises:
        ConfigurationError: one is no instance that can be called.
    """
    listed = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for transform in listed:
        if isinstance(transform, type) or not callable(transform):
            raise ConfigurationError(
                f"batch_transforms has {transform!r}; expected instances of kdengine.BatchTransform, such as "
                "kdengine.data.mixing.MixUp(classes=10)"
            )
    return listed


def class_map(given: Any) -> Any:
    """Return what maps the student's classes to the teacher's: ``"shared"``, None, or whole numbers.

    Raises:
        ConfigurationError: it is none of these.
    """
    if given is None or (isinstance(given, str) and given == "shared"):
        return given
    try:
        listed = [operator.index(position) for position in given]
    except TypeError:
        listed = [-1]
    if isinstance(given, str) or not listed or min(listed) < 0:
        raise ConfigurationError(
            f"classes must be 'shared' or a sequence of teacher classes, counted from 0, got {given!r}"
        )
    return listed


def run_directory(given: Any) -> Path | None:
    """Return the run directory as a path.

    Raises:
        ConfigurationError: it is no path.
    """
    if given is None:
        return None
    if not isinstance(given, str | os.PathLike) or not str(given):
        raise ConfigurationError(f"out must be the path of a run directory, got {given!r}")
    return expanded(given)


def check_resume(given: Any) -> None:
    """Refuse a word that would be taken for yes.

    Raises:
        ConfigurationError: it is neither ``"auto"``, True, False nor None.
    """
    if given is not None and not isinstance(given, bool) and given != "auto":
        raise ConfigurationError(f"resume must be 'auto', True, False or None, got {given!r}")


def function(name: str, given: F | None) -> F | None:
    """Return a function that the user gave, or None.

    Raises:
        ConfigurationError: it cannot be called.
    """
    if given is not None and not callable(given):
        raise ConfigurationError(f"{name} must be a function, got {given!r}")
    return given
