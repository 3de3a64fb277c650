"""Random batches with outputs, and what a check does to one: take rows, cast, make it differentiable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Output
from kdengine.api.features import INPUT, expand, select
from kdengine.api.structure import map_tensors
from kdengine.testing.models import stand_in

CLASSES = 5
INPUTS = 3
WIDTH = 6

Change = Callable[[Tensor], Tensor]

Shapes: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]] | None
"""Shape of every feature without the batch, or of each by its path; None for vectors of width 6."""


def random_batch(loss: Loss, size: int, generator: torch.Generator, features: Shapes = None) -> Batch:
    """What a loss says that it needs: logits of 5 classes, features, class ids with one in four ignored.

    Args:
        loss: its ``needs`` are read.
        size: number of items.
        generator: of everything random.
        features: shapes of features. A pattern such as ``layer*`` stands for those paths of a mapping that it
            matches, or else for two.
    """
    needs = loss.needs
    labels = torch.randint(1, CLASSES, (size,), generator=generator)
    labels[1::4] = getattr(loss, "ignore_index", -100)
    batch = Batch(
        torch.randn(size, INPUTS, generator=generator, dtype=torch.float64),
        labels if needs.labels else None,
        torch.arange(size) if needs.index else None,
    )
    batch.student = random_output(size, needs.student_features, generator, features)
    if needs.teacher:
        batch.teacher = random_output(size, needs.teacher_features, generator, features)
    attach_models(batch, generator, teacher_trains=needs.teacher_training)
    return batch


def random_output(size: int, patterns: Sequence[str], generator: torch.Generator, features: Shapes = None) -> Output:
    """Random logits, and features at the paths that patterns stand for."""
    logits = torch.randn(size, CLASSES, generator=generator, dtype=torch.float64)
    shapes = feature_shapes(patterns, features)
    values = {
        path: torch.randn(size, *shape, generator=generator, dtype=torch.float64) for path, shape in shapes.items()
    }
    return Output(logits, logits, values)


def attach_models(batch: Batch, generator: torch.Generator, *, teacher_trains: bool = False) -> None:
    """Give outputs that come without their model one that has a module at each feature's path, in the mode of a fit."""
    for output, trains in zip(outputs_of(batch), (True, teacher_trains), strict=False):
        if output.module is None:
            inputs = batch.inputs.shape[-1] if isinstance(batch.inputs, Tensor) and batch.inputs.ndim > 1 else INPUTS
            classes = CLASSES if output._logits is None else output._logits.shape[-1]
            shapes = {path: tuple(value.shape[1:]) for path, value in output.features.items()}
            output.module = stand_in(inputs, classes, shapes, generator).train(trains)
    if batch.has_teacher and not teacher_trains and batch.teacher.module is not None:
        batch.teacher.module.requires_grad_(False)


def feature_shapes(patterns: Sequence[str], features: Shapes) -> dict[str, tuple[int, ...]]:
    """The paths that patterns stand for, and the shape of each.

    Raises:
        ValueError: ``features`` names paths, and not this one.

    >>> feature_shapes(["layer*", "head:input"], (8, 4, 4))
    {'layer1': (8, 4, 4), 'layer2': (8, 4, 4), 'head:input': (8, 4, 4)}
    >>> feature_shapes(["layer*"], {"layer1": (8, 4), "layer7": (4, 2)})
    {'layer1': (8, 4), 'layer7': (4, 2)}
    """
    given = features if isinstance(features, Mapping) else {}
    shapes: dict[str, tuple[int, ...]] = {}
    for pattern in patterns:
        for path in paths_of(pattern, given):
            if not isinstance(features, Mapping):
                shape: Sequence[int] = (WIDTH,) if features is None else features
            elif path in given or pattern in given:
                shape = given[path] if path in given else given[pattern]
            else:
                raise ValueError(f"features gives no shape for {path!r}; it names {', '.join(map(repr, given))}")
            shapes[path] = tuple(shape)
    return shapes


def paths_of(pattern: str, given: Iterable[str]) -> list[str]:
    """The paths that a pattern stands for: itself, those of ``given`` that it matches, or two of its kind."""
    path, end = (pattern.removesuffix(INPUT), INPUT) if pattern.endswith(INPUT) else (pattern, "")
    if not WILD.search(path):
        return [pattern]
    known = [name.removesuffix(INPUT) for name in given if name.endswith(INPUT) == bool(end) and name != pattern]
    try:
        return expand([pattern], known)
    except ValueError:
        made = (WILD.sub(partial(_letter, at=at), path) for at in (0, -1))
        return list(dict.fromkeys(name + end for name in made))


WILD = re.compile(r"\*|\?|\[!?[^\]]+\]")


def _letter(found: re.Match[str], at: int) -> str:
    """A letter that a wildcard of a shell pattern matches: the first or the last of its kind."""
    wildcard = found[0]
    if not wildcard.startswith("["):
        return "12"[at]
    letters = wildcard[1:-1]
    return letters[at] if not letters.startswith("!") else [c for c in "12ab" if c not in letters][at]


def change(batch: Batch, data: Change, student: Change | None = None, teacher: Change | None = None) -> Batch:
    """A new batch: ``data`` applied to inputs, labels, index and mask, the others to the outputs' tensors."""
    changed = [apply(data, part) for part in (batch.inputs, batch.labels, batch.index, batch.mask)]
    made = Batch(*changed, weights=apply(data, batch.weights))
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
    return map_tensors(function, value)


def without_outputs(batch: Batch) -> Batch:
    """The batch as ``valid`` may see it."""
    return batch.without_outputs()


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


def outputs_of(batch: Batch) -> list[Output]:
    """The student's output, and the teacher's where there is one."""
    return [batch.student, *([batch.teacher] if batch.has_teacher else [])]


def make_equal(batch: Batch, needs: Needs) -> Batch | None:
    """The batch with a student that gives what its teacher gives; None where there is no teacher, or shapes differ."""
    if not batch.has_teacher:
        return None
    student = _read(batch.student, needs.student_features)
    teacher = _read(batch.teacher, needs.teacher_features)
    if [value.shape for value in student] != [value.shape for value in teacher]:
        return None
    twins = {id(one): other for one, other in zip(student, teacher, strict=True)}
    equal = change(batch, lambda tensor: tensor, lambda tensor: twins.get(id(tensor), tensor).clone())
    if batch.student.output is not batch.student._logits:
        equal.student.output = apply(Tensor.clone, batch.teacher.output)
    return equal


def _read(output: Output, patterns: Sequence[str]) -> list[Tensor]:
    """Logits, where there are any, and features in the order in which a loss names them."""
    logits = [] if output._logits is None else [output._logits]
    return [*logits, *(select(output.features, patterns) if patterns else ())]
