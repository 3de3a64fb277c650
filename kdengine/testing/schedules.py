"""The contract of a schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from kdengine.api import Progress, Schedule
from kdengine.engine import codec
from kdengine.testing.report import fail, name_of, require

HORIZONS = (1, 2, 12)
EVALUATE_EVERY = 3


def check_schedule(factory: Callable[..., Schedule], /, **arguments: Any) -> None:
    """Check a schedule: finite numbers, one value per step however often it is asked, a state that can be resumed.

    Evaluations give ``top1``, ``loss`` and every name among the string arguments.

    Args:
        factory: the schedule's class, or a function that makes one.
        arguments: of the factory.

    Raises:
        AssertionError: the first thing that does not hold.

    Example:
        >>> from kdengine.schedules import Linear
        >>> check_schedule(Linear, start=4.0, end=1.0)
    """
    name = name_of(factory)
    made: Any = factory(**arguments)
    if not isinstance(made, Schedule):
        fail(name, f"gives a {type(made).__name__}; expected a kdengine.Schedule")
    metrics = ("top1", "loss", *(value for value in arguments.values() if isinstance(value, str)))
    for steps in HORIZONS:
        course = [progress(step, steps, metrics) for step in range(steps)]
        expected = _check_values(name, factory(**arguments), course)
        for start in range(steps):
            _check_resume(name, factory, arguments, course, start, expected)


def progress(step: int, steps: int, metrics: tuple[str, ...]) -> Progress:
    """Where training stands, with an evaluation after every third step."""
    evaluated = step - step % EVALUATE_EVERY
    values = dict.fromkeys(metrics, 0.5) | {"step": float(evaluated)} if evaluated else {}
    return Progress(step, steps, step // EVALUATE_EVERY, -(-steps // EVALUATE_EVERY), values)


def _check_values(name: str, schedule: Schedule, course: list[Progress]) -> list[float]:
    """The values of a whole training; each is asked for twice, as a loss asks once at its construction."""
    schedule.value(Progress(step=0, steps=1))
    values = []
    for at in course:
        value: Any = schedule.value(at)
        where = f"value at step {at.step} of {at.steps}"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number, name, f"{where} is {value!r}; expected a number")
        require(math.isfinite(value), name, f"{where} is {value!r}; expected a finite number")
        again = schedule.value(at)
        require(again == value, name, f"{where} is {value!r}, and {again!r} when asked again")
        values.append(float(value))
    return values


def _check_resume(
    name: str,
    factory: Callable[..., Schedule],
    arguments: dict[str, Any],
    course: list[Progress],
    start: int,
    expected: list[float],
) -> None:
    """A new schedule with the state of another goes on as that one would have."""
    before, after = factory(**arguments), factory(**arguments)
    for at in course[:start]:
        before.value(at)
    try:
        tree, tensors = codec.encode(before.state_dict())
    except codec.UnsupportedState as error:
        fail(name, f"its state cannot be checkpointed: {error}", error)
    after.load_state_dict(codec.decode(json.loads(json.dumps(tree)), tensors))
    for at, value in zip(course[start:], expected[start:], strict=True):
        got = after.value(at)
        require(
            got == value,
            name,
            f"resumed at step {start}, it gives {got!r} at step {at.step} of {at.steps}; without a break {value!r}. "
            "Keep what value() remembers in state_dict",
        )
