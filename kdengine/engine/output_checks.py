"""Checks of real outputs: that each loss and metric reads from models and labels what it is made for.

They run on the first step of a fit, on the first batch of each form in a foreign loop, on the first batch of an
evaluation, and in the rehearsal of a recipe; so they may read values from the device.

Shape suffixes: B items, T positions, V classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss, Metric, Output
from kdengine.api.batch import describe
from kdengine.api.errors import LossError
from kdengine.api.loss import Classes
from kdengine.engine import doubts
from kdengine.engine.attribution import raised_by
from kdengine.engine.fit import Models
from kdengine.engine.given import check_size, doubt_weights, given_to
from kdengine.engine.heads import Heads
from kdengine.engine.label_checks import check_labels, check_range, ignored, refuse_copies
from kdengine.engine.metrics import ForeignMetric, FunctionMetric
from kdengine.engine.notices import Notices
from kdengine.engine.objective import Objective

LAST = "Engine(output=lambda output: output.movedim(1, -1)), or Engine(output=kdengine.classes_last)"
BINARY = (
    "For one logit with a sigmoid use the losses binary_kl or bce, and Engine(metrics={'accuracy': fn}), where "
    "fn(logits, labels) gives a number per item"
)


def check_outputs(objective: Objective, models: Models, batch: Batch, notices: Notices) -> None:
    """Check what every loss reads of a batch that the models have run on.

    Args:
        objective: the losses.
        models: that ran.
        batch: with their outputs.
        notices: of the engine, for what may be meant.

    Raises:
        LossError: a loss would compute something else than it is made for.
    """
    doubt_weights(models.student, given_to(models, "student", batch), notices)
    for label, loss in objective.losses.items():
        if label in objective.peers:
            continue  # a copy of a loss that has been looked at
        with raised_by(label, loss):
            check_data(label, loss, models.heads.relabelled(label, batch))
            seen = models.heads.view(label, batch)
            if loss.needs.logits:
                check_logits(label, objective, models, seen)
                doubts.about_loss(label, objective, seen, notices)
            loss.inspect(seen)


def check_data(label: str, loss: Loss, batch: Batch) -> None:
    """Refuse data without what a loss needs of it."""
    name = type(loss).__name__.lower()
    if loss.needs.labels and batch.labels is None:
        raise LossError(
            f"the loss {name} needs labels, but the loader gives none; "
            "expected (input, labels) or a mapping with 'labels'",
            label,
        )
    if loss.needs.labels and not isinstance(batch.labels, Tensor):
        raise LossError(
            f"the loss {name} needs labels as a tensor, but the loader gives {describe(batch.labels)}; "
            f"say which are its own: Engine(labels={{{label!r}: lambda labels: labels[...]}})",
            label,
        )
    if loss.needs.index and batch.index is None:
        raise LossError(f"the loss {name} needs the items' index; use kdengine.loader for the data", label)


def check_logits(label: str, objective: Objective, models: Models, batch: Batch) -> None:
    """Check the logits of a loss, of one model and between them, and the labels that it compares them with."""
    loss, heads = objective.losses[label], models.heads
    needs = loss.needs
    chosen = heads.has(label) or not heads.guesses
    for who, output in _outputs(batch, teacher=needs.teacher).items():
        if not chosen:
            refuse_several(who, output)
        check_size(who, output, batch)
        check_form(needs.classes, output.logits, batch.labels, chosen=chosen)
    if needs.teacher and heads.align is None:
        check_classes(label, batch.student.logits.shape[-1], batch.teacher.logits.shape[-1])
    if needs.teacher and needs.classes is not None:
        check_rows(batch.student.logits.shape, batch.teacher.logits.shape)
    if needs.labels and needs.classes == "exclusive" and batch.labels is not None:
        logits = batch.student.logits
        check_labels(loss, logits, batch.labels)
        if logits.device.type != "cpu":
            objective.on_device.add(label)
    if needs.labels and not heads.relabels:
        refuse_copies(batch)


def check_metrics(metrics: Mapping[str, Metric], models: Models, batch: Batch) -> None:
    """Check what metrics find in a batch with outputs.

    Raises:
        ConfigurationError: a metric would measure something else than it is made for.
    """
    for name, metric in metrics.items():
        if metric.classes is None and not isinstance(metric, FunctionMetric | ForeignMetric):
            continue  # it may read anything
        try:
            check_metric(name, metric, models.heads, models.heads.view(name, batch))
        except ConfigurationError as error:
            raise ConfigurationError(f"metrics.{name}: {error}") from error


def check_metric(name: str, metric: Metric, heads: Heads, batch: Batch) -> None:
    """Check the logits of one metric, and the labels that it compares them with."""
    chosen = heads.has(name) or not heads.guesses
    for who, output in _outputs(batch, teacher=metric.needs_teacher).items():
        if not chosen:
            refuse_several(who, output)
        check_size(who, output, batch)
        check_form(metric.classes, output.logits, batch.labels, chosen=chosen)
    labels, logits = batch.labels, batch.student.logits
    if not metric.needs_labels or labels is None:
        return
    if not isinstance(labels, Tensor):
        raise ConfigurationError(
            f"it needs labels as a tensor, but the loader gives {describe(labels)}; say which are its own: "
            f"Engine(labels={{{name!r}: lambda labels: labels[...]}})"
        )
    if metric.classes == "exclusive" and not labels.is_floating_point() and labels.shape == logits.shape[:-1]:
        check_range(labels, logits.shape[-1], ignored(metric))
    if not heads.relabels:
        refuse_copies(batch)


def _outputs(batch: Batch, *, teacher: bool) -> dict[str, Output]:
    return {"student": batch.student, **({"teacher": batch.teacher} if teacher else {})}


def refuse_several(who: str, output: Output) -> None:
    """Refuse to take the first of several outputs that may all be logits.

    >>> import torch
    >>> refuse_several("student", Output((torch.zeros(2, 3), torch.zeros(2, 5)), torch.zeros(2, 3)))
    """
    given, first = output.output, output._logits
    if first is None or not isinstance(given, tuple | list) or hasattr(given, "logits"):
        return
    alike = [at for at, item in enumerate(given) if _like(item, first)]
    if len(alike) > 1:
        raise ConfigurationError(
            f"the {who} returned {describe(given)}, of which items {', '.join(map(str, alike))} all have the shape "
            f"{tuple(first.shape)}: which of them are the logits? Say it, for student and teacher alike, by "
            "Engine(output=lambda output: output if torch.is_tensor(output) else output[0]), or for each loss by its "
            "label: Engine(output={'ce': lambda output: ..., 'kd': lambda output: ...})"
        )


def _like(item: Any, first: Tensor) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point() and item.shape == first.shape


def check_form(classes: Classes | None, logits: Tensor, labels: Any, *, chosen: bool) -> None:
    """Check that the last dimension of logits is what a loss or metric takes it for.

    Args:
        classes: what it takes the last dimension for.
        logits: as they were read.
        labels: of the batch, which tell where the classes are.
        chosen: whether the user said how the logits are read, so that the last dimension is meant.
    """
    if classes is None:
        return
    if classes == "exclusive" and logits.ndim < 2:
        raise ConfigurationError(
            f"the logits {tuple(logits.shape)} have no dimension of classes, (B, ..., V): a softmax would be taken "
            f"over the items. {BINARY}"
        )
    if misplaced(logits.shape, labels, chosen=chosen):
        raise ConfigurationError(
            f"it takes the last dimension of the logits for the classes, but the logits are {tuple(logits.shape)}"
            f"{f' and the labels {tuple(labels.shape)}' if isinstance(labels, Tensor) else ''}, as of a model whose "
            f"classes are in dimension 1. Move them to the end: {LAST}"
            f"{'' if chosen else '; where the last dimension is meant: Engine(output=lambda output: output)'}"
        )
    if classes == "exclusive" and logits.shape[-1] == 1:
        raise ConfigurationError(
            f"the logits {tuple(logits.shape)} are of a single class, for which a softmax is always 1: nothing could "
            f"be learned or measured. {BINARY}"
        )


def misplaced(shape: Sequence[int], labels: Any, *, chosen: bool) -> bool:
    """Whether the classes of logits are, or may well be, in dimension 1.

    >>> import torch
    >>> misplaced((2, 5, 8, 9), torch.zeros(2, 8, 9, dtype=torch.long), chosen=True)
    True
    >>> misplaced((2, 8, 9, 5), torch.zeros(2, 8, 9, dtype=torch.long), chosen=False)
    False
    """
    last, second = tuple(shape[:-1]), (*shape[:1], *shape[2:])
    if len(shape) > 2 and isinstance(labels, Tensor) and not labels.is_floating_point() and last != second:
        if tuple(labels.shape) == second:
            return True
        if tuple(labels.shape) == last:
            return False
    return len(shape) > 3 and not chosen


def check_rows(student: Sequence[int], teacher: Sequence[int]) -> None:
    """Refuse to compare the rows of one model with others of the other: nothing is broadcast."""
    if tuple(student[:-1]) != tuple(teacher[:-1]):
        raise ConfigurationError(
            f"it compares logits row by row, but the student gave {tuple(student)} and the teacher {tuple(teacher)}; "
            "Engine(output=fn) can reshape them, or read the part that corresponds"
        )


def check_classes(label: str, student: int, teacher: int) -> None:
    """Refuse to compare different sets of classes silently."""
    if student != teacher:
        raise LossError(
            f"it compares logits, but the student has {student} classes and the teacher {teacher}; "
            "pass classes='shared' to use the leading ones they share, or "
            "classes=[teacher class of each student class]",
            label,
        )
