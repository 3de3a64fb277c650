"""Names in records: which are the engine's own, and that no two things share one; labels as names of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeVar

from torch import nn

from kdengine.api import ConfigurationError, Loss, Schedule
from kdengine.api.errors import LossError, warn

V = TypeVar("V")

RESERVED: Final = ("batch", "epoch", "items_per_second", "kind", "loss", "lr", "step")
"""Keys of a record that the engine writes itself."""
SHARES: Final = "gradient_share."
"""What the keys of measured gradient shares begin with."""
PLACES: Final = frozenset({"epoch", "kind", "step"})
"""The reserved keys that say where in training a record belongs."""
ELSEWHERE: Final = "evaluate."
"""Put before a value's name where the name is taken, and the value is known only when it comes."""

_MODULE_ATTRIBUTES: Final = frozenset(dir(nn.ModuleDict()))


def check_names(losses: Mapping[str, Loss], weights: Mapping[str, object], metrics: Iterable[str]) -> None:
    """Refuse labels and metrics whose values would overwrite each other in records and history.

    Args:
        losses: by label.
        weights: by label; a schedule is recorded.
        metrics: names.

    Raises:
        LossError: a label, or a loss's term or schedule, has a reserved name or that of something else.
        ConfigurationError: a metric has a reserved name.
    """
    measured = list(metrics)
    for name in measured:
        if not _is_name(name):
            raise ConfigurationError(f"metrics: {name!r} is no name; expected printable text, such as 'top1'")
        if (reason := taken(name)) is not None:
            raise ConfigurationError(f"metrics: {name!r} {reason}; give the metric another name")
    seen: dict[str, str] = {}
    for label, loss in losses.items():
        for name, what in recorded(label, loss, weights.get(label)):
            other = seen.get(name) or ("a metric's" if name in measured else None)
            reason = taken(name) or (f"is {other} name as well" if other else None)
            if reason is not None:
                raise LossError(f"{what} is recorded as {name!r}, which {reason}; choose another label", label)
            seen[name] = f"that of losses.{label} its"


def recorded(label: str, loss: Loss, weight: object) -> Iterator[tuple[str, str]]:
    """The keys under which a loss is recorded, each with what stands there."""
    check_label(label)
    for term in getattr(loss, "terms", ()):  # what is no loss is refused where the objective is made
        yield (label, "the loss") if term == "loss" else (f"{label}.{term}", f"its term {term!r}")
    for argument in getattr(loss, "schedules", ()):
        yield f"{label}.{argument}", f"the schedule of {argument!r}"
    if isinstance(weight, Schedule):
        yield f"weights.{label}", "the schedule of its weight"


def check_label(label: object) -> None:
    """Refuse a label that no file and no message could show."""
    if not _is_name(label):
        raise ConfigurationError(f"losses: the label {label!r} is no name; expected printable text, such as 'kd'")


def _is_name(given: object) -> bool:
    return isinstance(given, str) and given.isprintable() and bool(given.strip())


def taken(name: str) -> str | None:
    """Why the engine's own records have a name already, or None.

    >>> taken("lr"), taken("kd")
    ('is reserved (batch, epoch, items_per_second, kind, loss, lr, step)', None)
    """
    if name in RESERVED:
        return f"is reserved ({', '.join(RESERVED)})"
    return f"is reserved for measured gradient shares ({SHARES}...)" if name.startswith(SHARES) else None


def placed(values: Mapping[str, V]) -> dict[str, V]:
    """What an evaluation function gave, renamed where a name says where in training a record belongs."""
    return {f"{ELSEWHERE}{name}" if name in PLACES else name: value for name, value in values.items()}


def joined(record: Mapping[str, V], values: Mapping[str, V]) -> dict[str, V]:
    """An epoch's record with its evaluation; what both have stays that of the training, and is told once.

    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     joined({"loss": 0.5}, {"loss": 0.7, "top1": 0.9})
    {'loss': 0.5, 'evaluate.loss': 0.7, 'top1': 0.9}
    """
    twice = [name for name in values if name in record]
    if twice:
        warn(
            f"the evaluation gives {', '.join(map(repr, twice))}, which the training records as well; in the history "
            f"its values are named {', '.join(repr(ELSEWHERE + name) for name in twice)}"
        )
    return {**record, **{f"{ELSEWHERE}{name}" if name in record else name: value for name, value in values.items()}}


def module_names(labels: Iterable[str]) -> dict[str, str]:
    """A name for each label that ``nn.ModuleDict`` takes; a label that it takes is its own name, as in checkpoints.

    Its dots are written ``%2E``, and so is the first letter of a name that modules have already.

    >>> module_names(["kd", "kd.t4", "type"])
    {'kd': 'kd', 'kd.t4': 'kd%2Et4', 'type': '%74ype'}

    Raises:
        ConfigurationError: two labels come to one name.
    """
    names = {label: _module_name(label) for label in labels}
    if len(set(names.values())) < len(names):
        twice = [label for label in names if sum(name == names[label] for name in names.values()) > 1]
        raise ConfigurationError(f"losses: the labels {', '.join(map(repr, twice))} cannot stand beside each other")
    return names


def _module_name(label: str) -> str:
    check_label(label)
    name = label.replace(".", "%2E")
    return f"%{ord(name[0]):02X}{name[1:]}" if name in _MODULE_ATTRIBUTES else name
