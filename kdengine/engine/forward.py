"""Running teacher and student on a batch."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from kdengine.api import Batch, ConfigurationError, Loss, Output
from kdengine.api.errors import LossError
from kdengine.engine.batching import call_model, device_of, move
from kdengine.engine.fit import Fit, Models
from kdengine.engine.precision import Precision


def run_teacher(models: Models, precision: Precision, batch: Batch, *, features: bool = True) -> Output:
    """The teacher's output; without a graph when the source is frozen."""
    source = models.source
    if source is None:
        raise ConfigurationError("a loss or metric needs a teacher, but Engine(teacher=...) was not given")
    capture = models.teacher_features if features else None
    if capture is not None:
        capture.start()
    with nullcontext() if source.evolving else torch.no_grad():
        output = precision.run_model(source.forward, batch)
    captured = None if capture is None else move(capture.take(), device_of(batch.inputs))
    logits = output if source.gives_logits else models.find_logits(output)
    return Output(output, logits, captured, models.teacher)


def run_pair(models: Models, precision: Precision, batch: Batch) -> None:
    """Teacher, where losses need it, and student, as losses see them; their outputs end up on the batch."""
    if models.teach:
        batch.teacher = run_teacher(models, precision, batch)
    batch.student = run_student(models, precision, batch)
    if models.align is not None and models.teach:
        models.align(batch)


def run_student(
    models: Models, precision: Precision, batch: Batch, *, model: nn.Module | None = None, features: bool = True
) -> Output:
    """The student's output, with a graph where gradients are enabled.

    Args:
        models: the models of a fit.
        precision: how they compute.
        batch: its inputs are read.
        model: called in the student's place: its moving average, or the same module as a foreign loop wrapped it.
        features: whether the features that losses ask for must arrive; an evaluation wants none.
    """
    capture = models.student_features if features else None
    if capture is not None:
        capture.start()
    output = precision.run_model(call_model, models.student if model is None else model, batch.inputs)
    captured = None if capture is None else capture.take()
    return Output(output, models.find_logits(output), captured, models.student)


def check_outputs(fit: Fit, batch: Batch) -> None:
    """At the first step: class counts and label range, where a logits loss runs."""
    for label, loss in fit.objective.losses.items():
        needs = loss.needs
        check_batch(label, loss, batch)
        if needs.teacher and needs.logits and fit.models.align is None:
            check_classes(label, batch.student.logits.shape[-1], batch.teacher.logits.shape[-1])


def check_batch(label: str, loss: Loss, batch: Batch) -> None:
    """Refuse data without what a loss needs of it."""
    name = type(loss).__name__.lower()
    if loss.needs.labels and batch.labels is None:
        raise LossError(
            f"the loss {name} needs labels, but the loader gives none; "
            "expected (input, labels) or a mapping with 'labels'",
            label,
        )
    if loss.needs.index and batch.index is None:
        raise LossError(f"the loss {name} needs the items' index; use kdengine.loader for the data", label)


def check_classes(label: str, student: int, teacher: int) -> None:
    """Refuse to compare different sets of classes silently."""
    if student != teacher:
        raise LossError(
            f"it compares logits, but the student has {student} classes and the teacher {teacher}; "
            "pass classes='shared' to use the leading ones they share, or "
            "classes=[teacher class of each student class]",
            label,
        )
