"""What a loss, a metric and a callback see of one micro-batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from kdengine.api.errors import ConfigurationError
from kdengine.api.structure import count_items as count_items
from kdengine.api.structure import describe as describe
from kdengine.api.structure import first_tensor as first_tensor
from kdengine.api.structure import map_tensors


class Output:
    """What one model gave for a batch.

    Attributes:
        output: the model's return value, untouched.
        features: tensors captured at the module paths that a loss asked for.
        module: the model itself (None for a teacher read from a cache).
    """

    __slots__ = ("_logits", "features", "module", "output")

    def __init__(
        self,
        output: Any,
        logits: Tensor | None,
        features: Mapping[str, Tensor] | None = None,
        module: nn.Module | None = None,
    ) -> None:
        self.output = output
        self._logits = logits
        self.features: Mapping[str, Tensor] = {} if features is None else features
        self.module = module

    @property
    def logits(self) -> Tensor:
        """The class scores, ``(B, V)`` or ``(B, ..., V)``.

        Raises:
            ConfigurationError: the output has no logits; it lists the fields that were seen.
        """
        if self._logits is None:
            raise ConfigurationError(
                f"a loss or metric needs logits, but the model returned {describe(self.output)}; expected a tensor, "
                "an object with .logits, a mapping with 'logits' or a sequence whose item 0 is the logits. "
                "Pass Engine(output=fn), where fn(output) returns the logits"
            )
        return self._logits

    def tensors(self) -> list[Tensor]:
        """Logits and features."""
        return [*([] if self._logits is None else [self._logits]), *self.features.values()]

    def detach(self) -> Output:
        """The same output without a graph, as observers get it."""
        logits = None if self._logits is None else self._logits.detach()
        return Output(self.output, logits, {k: v.detach() for k, v in self.features.items()}, self.module)

    def select(self, live: Tensor) -> Output:
        """The same output with zeros in logits and features where ``live`` (``(B,)`` bool) is False."""

        def pick(value: Tensor) -> Tensor:
            return torch.where(live.view(-1, *[1] * (value.ndim - 1)), value, 0.0)

        logits = None if self._logits is None else pick(self._logits)
        return Output(self.output, logits, {k: pick(v) for k, v in self.features.items()}, self.module)

    def take(self, items: Tensor) -> Output:
        """The same output with logits and features of some items only; ``items`` are their positions."""

        def pick(value: Tensor) -> Tensor:
            return value.index_select(0, items.to(value.device, non_blocking=True))

        logits = None if self._logits is None else pick(self._logits)
        return Output(self.output, logits, {k: pick(v) for k, v in self.features.items()}, self.module)


class Batch:
    """One micro-batch and, once the models have run, what they gave.

    Attributes:
        inputs: a tensor, or a mapping of keyword inputs for the models.
        labels: class ids ``(B, ...)`` int64 (``ignore_index``, by default -100, marks an unlabelled item), class
            probabilities ``(B, V)`` (a row of zeros marks an unlabelled item), targets of any other task, or None.
        index: positions of the items in the data set, ``(B,)`` int64, or None when the loader gives none.
        epoch: the epoch that the items are drawn in, or None outside of training.
        draw: ``(seed, epoch)``, of which the items' random transforms are a function; None where the loader knows that
            its items never change, and outside of training.
        host: the batch on the host that this one is a copy of on an accelerator, or None.
        mask: ``(B,)`` bool, False for an item that takes part in nothing (padding); None when all take part.
        weights: how much each item counts in the losses, ``(B,)`` and not negative; None when all count alike. Every
            term becomes the weighted mean ``sum(weight * value) / sum(weight)`` over the items of an optimizer step:
            weights of 0 and 1 give the mean over the items that count, and equal weights change nothing. Metrics do
            not look at them.
        size: number of items.
        student: the student's output; set before losses run.
        teacher: the teacher's output; set before losses run when a loss or metric needs a teacher.

    Args:
        inputs: a tensor, or a mapping or sequence with tensors.
        labels: the targets.
        index: positions in the data set.
        mask: which items take part.
        weights: how much each item counts.
        size: number of items; by default the first dimension of the first tensor in ``inputs``.

    Raises:
        ConfigurationError: the items cannot be counted, or index, mask or weights are not of as many items.
    """

    __slots__ = (
        "_student",
        "_teacher",
        "draw",
        "epoch",
        "host",
        "index",
        "inputs",
        "labels",
        "mask",
        "size",
        "weights",
    )

    def __init__(
        self,
        inputs: Any,
        labels: Tensor | None = None,
        index: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        size: int | None = None,
    ) -> None:
        self.inputs = inputs
        self.labels = labels
        self.index = index
        self.epoch: int | None = None
        self.draw: tuple[int | None, int] | None = None
        self.host: Batch | None = None
        self.mask = mask
        self.weights = weights
        self.size = count_items(inputs) if size is None else size
        self._student: Output | None = None
        self._teacher: Output | None = None
        if not (index is None and mask is None and weights is None):
            _check_rows(self)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; every other field, and the outputs, are those of this batch.

        A batch hook or transform that makes its batch with this loses nothing.

        Args:
            **changes: new values by the names of the attributes.

        Raises:
            TypeError: a name is none of theirs.
            ConfigurationError: the new inputs are of another number of items.

        Example:
            >>> batch = Batch(torch.zeros(2, 3), torch.tensor([0, 1]))
            >>> batch.replace(inputs=torch.ones(2, 3)).labels
            tensor([0, 1])
        """
        made = copy.copy(self)
        for name, value in changes.items():
            if name.startswith("_") or not hasattr(type(self), name):
                raise TypeError(f"Batch.replace() got {name!r}, which is no attribute of a batch")
            setattr(made, name, value)
        if changes.keys() & {"index", "mask", "weights", "size"}:
            _check_rows(made)
        if "inputs" in changes and "size" not in changes:
            _check_as_many(self.inputs, made)
        return made

    def without_outputs(self) -> Self:
        """A copy as it is before the models run."""
        return self.replace(student=None, teacher=None)

    @property
    def student(self) -> Output:
        """The student's output."""
        if self._student is None:
            raise ConfigurationError(
                "batch.student was read before the student ran; valid() must look at inputs, labels and mask only"
            )
        return self._student

    @student.setter
    def student(self, output: Output | None) -> None:
        self._student = output

    @property
    def teacher(self) -> Output:
        """The teacher's output."""
        if self._teacher is None:
            raise ConfigurationError(
                "batch.teacher was read, but no teacher ran: give Engine(teacher=...), "
                "or declare needs = Needs(teacher=True) on the loss or needs_teacher = True on the metric"
            )
        return self._teacher

    @teacher.setter
    def teacher(self, output: Output | None) -> None:
        self._teacher = output

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher ran for this batch."""
        return self._teacher is not None

    def take(self, items: Tensor) -> Batch:
        """Some items of the batch, with their outputs.

        Inputs and raw outputs, which may be of any form, stay those of the whole batch.

        Args:
            items: their positions, ``(N,)`` int64.
        """

        def pick(value: Tensor) -> Tensor:
            return value.index_select(0, items.to(value.device, non_blocking=True))

        per_item = {name: map_tensors(pick, getattr(self, name)) for name in ("labels", "index", "mask", "weights")}
        return self.replace(
            **per_item,
            size=len(items),
            host=None,
            student=self.student.take(items),
            teacher=self.teacher.take(items) if self.has_teacher else None,
        )


def _check_as_many(before: Any, made: Batch) -> None:
    """Refuse inputs that are one tensor, as those before, of another number of items."""
    tensors = isinstance(before, Tensor) and isinstance(made.inputs, Tensor) and before.ndim and made.inputs.ndim
    if tensors and before.size(0) == made.size != made.inputs.size(0):
        raise ConfigurationError(
            f"Batch.replace() got inputs of {made.inputs.size(0)} items for a batch of {made.size}; give size= and "
            "every field of the items with them, or make a new kdengine.Batch"
        )


def _check_rows(batch: Batch) -> None:
    """Refuse an index, mask or weights that are not those of the batch's items."""
    for name in ("index", "mask", "weights"):
        given = getattr(batch, name)
        if given is None:
            continue
        if not isinstance(given, Tensor) or given.shape[:1] != (batch.size,) or (name == "weights" and given.ndim > 1):
            raise ConfigurationError(
                f"a batch of {batch.size} items got {name} that are {describe(given)}; expected a tensor "
                f"({batch.size},), one value for each item"
            )
        if name != "weights" and given.is_floating_point():
            kind = (
                "positions in the data set, int64" if name == "index" else "bool; how much an item counts is weights="
            )
            raise ConfigurationError(f"a batch got {name} that are {describe(given)}; expected {kind}")
