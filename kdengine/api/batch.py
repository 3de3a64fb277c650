"""What a loss, a metric and a callback see of one micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdengine.api.errors import ConfigurationError


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
        student: the student's output; set before losses run.
        teacher: the teacher's output; set before losses run when a loss or metric needs a teacher.
    """

    __slots__ = ("_student", "_teacher", "draw", "epoch", "host", "index", "inputs", "labels", "mask", "size")

    def __init__(
        self,
        inputs: Any,
        labels: Tensor | None = None,
        index: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        size: int | None = None,
    ) -> None:
        self.inputs = inputs
        self.labels = labels
        self.index = index
        self.epoch: int | None = None
        self.draw: tuple[int | None, int] | None = None
        self.host: Batch | None = None
        self.mask = mask
        self.size = count_items(inputs) if size is None else size
        self._student: Output | None = None
        self._teacher: Output | None = None

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

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.index_select(0, items.to(value.device, non_blocking=True))

        taken = Batch(self.inputs, pick(self.labels), pick(self.index), pick(self.mask), size=len(items))
        taken.epoch, taken.draw = self.epoch, self.draw
        taken.student = self.student.take(items)
        if self.has_teacher:
            taken.teacher = self.teacher.take(items)
        return taken


def count_items(inputs: Any) -> int:
    """Number of items in a batch: the first dimension of the first tensor found in ``inputs``."""
    tensor = inputs if isinstance(inputs, Tensor) else first_tensor(inputs)
    if tensor is None or tensor.ndim == 0:
        raise ConfigurationError(
            f"cannot count the items of a batch whose inputs are {describe(inputs)}: expected a tensor, or a "
            "mapping or sequence with a tensor, whose first dimension is the batch. Pass Engine(batch=fn)"
        )
    return tensor.size(0)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor with a batch dimension inside nested mappings and sequences, or None."""
    if isinstance(value, Tensor):
        return value if value.ndim else None
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for item in values if (found := first_tensor(item)) is not None), None)


def describe(value: Any) -> str:
    """A value's type and fields in a few words, for error messages.

    >>> describe({"a": 1})
    "a dict with keys ['a']"
    """
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {list(value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}: {[type(item).__name__ for item in value]}"
    return f"a {type(value).__name__} with fields {sorted(vars(value)) if hasattr(value, '__dict__') else []}"
