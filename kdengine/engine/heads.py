"""What each loss and metric reads as logits and as labels: one output of the models for all, or a head for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Output
from kdengine.api.batch import describe
from kdengine.api.errors import nearest
from kdengine.api.models import find_logits
from kdengine.engine.mutual import PEER

Read: TypeAlias = Callable[[Any], Any]
Reading: TypeAlias = Read | Mapping[str, Read] | None
"""One function for every loss and metric, functions by the label of a loss or the name of a metric, or None."""


class Heads:
    """Reads logits out of models' outputs, and labels out of a batch's.

    Args:
        output: reads a model's output, student's and teacher's alike, as logits.
        labels: reads the labels that the loader gives.
        known: labels of the losses and names of the metrics.

    Attributes:
        find: reads a model's output for whatever has no head of its own.
        guesses: whether ``find`` is none of the user's, but takes the logits where they usually are.
        relabels: whether the user said how labels are read.
        read_labels: makes of the loader's labels those of every loss and metric, where one function does.
        align: makes the teacher's classes those of the student; None leaves them.

    Raises:
        ConfigurationError: a key is neither a loss's label nor a metric's name, or a value cannot be called.
    """

    def __init__(self, output: Reading, labels: Reading, known: Iterable[str]) -> None:
        known = list(known)
        self._logits = _by_label("output", output, known)
        self._labels = _by_label("labels", labels, known)
        self.guesses = output is None or isinstance(output, Mapping)
        self.find: Callable[[Any], Tensor | None] = output if callable(output) else find_logits
        self.read_labels = partial(_read, labels, place="Engine(labels=...)") if callable(labels) else None
        self.relabels = labels is not None
        self.align: Callable[[Batch], None] | None = None

    def has(self, label: str) -> bool:
        """Whether a loss or metric has a head of its own."""
        return label.removeprefix(PEER) in self._logits

    @property
    def labels(self) -> tuple[str, ...]:
        """The losses and metrics that have a head."""
        return tuple(self._logits)

    def relabelled(self, label: str, batch: Batch) -> Batch:
        """The batch with the labels of a loss or metric: for what happens before the models run."""
        read = self._labels.get(label.removeprefix(PEER)) if self._labels else None
        if read is None or batch.labels is None:
            return batch
        return batch.replace(labels=_read(read, batch.labels, place=f"Engine(labels=...)[{label!r}]"))

    def view(self, label: str, batch: Batch) -> Batch:
        """The batch as a loss or metric sees it, with its own logits of both models and its own labels."""
        own = self.relabelled(label, batch)
        read = self._logits.get(label.removeprefix(PEER)) if self._logits else None
        if read is None:
            return own
        own = own.replace(student=self.output(label, batch.student))
        if batch.has_teacher:
            own.teacher = self.output(label, batch.teacher)
            if self.align is not None:
                self.align(own)
        return own

    def output(self, label: str, output: Output) -> Output:
        """One model's output with the logits of a head."""
        read = self._logits.get(label.removeprefix(PEER))
        if read is None:
            return output
        logits = _read(read, output.output, place=f"Engine(output=...)[{label!r}]")
        return Output(output.output, logits, output.features, output.module)


def _by_label(argument: str, given: Reading, known: list[str]) -> dict[str, Read]:
    if given is None or (callable(given) and not isinstance(given, Mapping)):
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"Engine({argument}=...) must be a function, or a mapping from a loss's label or a metric's name to one, "
            f"got {describe(given)}"
        )
    for label, read in given.items():
        if label not in known:
            raise ConfigurationError(
                f"Engine({argument}=...) names {label!r}, which is neither a loss's label nor a metric's name; "
                f"{nearest(str(label), known)}"
            )
        if not callable(read):
            raise ConfigurationError(f"Engine({argument}=...)[{label!r}] must be a function, got {describe(read)}")
    return dict(given)


def _read(read: Read, given: Any, *, place: str) -> Tensor:
    """What one of the user's functions makes of an output or of labels.

    Raises:
        ConfigurationError: it does not find its key or attribute, or returns no tensor.
    """
    try:
        found = read(given)
    except (LookupError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"{place} raised {error!r}; it was given {describe(given)}") from error
    if not isinstance(found, Tensor):
        raise ConfigurationError(
            f"{place} returned {describe(found)}, expected a tensor; it was given {describe(given)}"
        )
    return found
