"""Random batches with outputs, and what a check does to one: take rows, cast, make it differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Output

CLASSES = 5
WIDTH = 6

Change = Callable[[Tensor], Tensor]


def random_batch(loss: Loss, size: int, generator: torch.Generator) -> Batch:
    """What a loss says that it needs: logits of 5 classes, features of width 6, class ids with one in four ignored."""
    needs = loss.needs
    labels = torch.randint(1, CLASSES, (size,), generator=generator)
    labels[1::4] = getattr(loss, "ignore_index", -100)
    batch = Batch(
        torch.randn(size, 3, generator=generator, dtype=torch.float64),
        labels if needs.labels else None,
        torch.arange(size) if needs.index else None,
    )
    batch.student = random_output(size, needs.student_features, generator)
    if needs.teacher:
        batch.teacher = random_output(size, needs.teacher_features, generator)
    return batch


def random_output(size: int, paths: tuple[str, ...], generator: torch.Generator) -> Output:
    """Random logits, and features at the paths."""
    logits = torch.randn(size, CLASSES, generator=generator, dtype=torch.float64)
    features = {path: torch.randn(size, WIDTH, generator=generator, dtype=torch.float64) for path in paths}
    return Output(logits, logits, features)


def change(batch: Batch, data: Change, student: Change | None = None, teacher: Change | None = None) -> Batch:
    """A new batch: ``data`` applied to inputs, labels, index and mask, the others to the outputs' tensors."""
    made = Batch(
        apply(data, batch.inputs), apply(data, batch.labels), apply(data, batch.index), apply(data, batch.mask)
    )
    made.student = change_output(batch.student, student or data)
    if batch.has_teacher:
        made.teacher = change_output(batch.teacher, teacher or data)
    return made


def change_output(output: Output, function: Change) -> Output:
    """A new output; logits that are the raw output itself stay so."""
    logits = None if output._logits is None else function(output._logits)
    raw = logits if output.output is output._logits else apply(function, output.output)
    return Output(raw, logits, {path: function(value) for path, value in output.features.items()}, output.module)


def apply(function: Change, value: Any) -> Any:
    """Change every tensor inside nested mappings and sequences."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: apply(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(apply(function, item) for item in value)
    return value


def without_outputs(batch: Batch) -> Batch:
    """The batch as ``valid`` may see it."""
    return Batch(batch.inputs, batch.labels, batch.index, batch.mask, size=batch.size)


def rows(batch: Batch, which: slice) -> Batch:
    """Some items of a batch, in the graph of the whole."""
    return change(batch, lambda tensor: tensor[which])


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its outputs, and floating labels, in another precision."""
    return change(batch, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def differentiable(batch: Batch, *, teacher: bool = False) -> tuple[Batch, list[Tensor]]:
    """A copy whose student's tensors (and teacher's, if asked) are leaves that take a gradient; and these leaves."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        made = tensor.detach().clone()
        if made.is_floating_point():
            leaves.append(made.requires_grad_())
        return made

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    return change(batch, copy, leaf, leaf if teacher else copy), leaves
