"""Running teacher and student on a batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError, Output
from kdengine.engine.batching import call_model
from kdengine.engine.features import Capture
from kdengine.engine.fit import Fit, Models
from kdengine.engine.precision import Precision


def run_teacher(models: Models, precision: Precision, batch: Batch, *, features: bool = True) -> Output:
    """The teacher's output; without a graph when the source is frozen."""
    source = models.source
    if source is None:
        raise ConfigurationError("a loss or metric needs a teacher, but Engine(teacher=...) was not given")
    with nullcontext() if source.evolving else torch.no_grad():
        output = precision.run_model(source.forward, batch)
    captured = None if models.teacher_features is None else _captured(models.teacher_features, features)
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
    output = precision.run_model(call_model, models.student if model is None else model, batch.inputs)
    captured = None if models.student_features is None else _captured(models.student_features, features)
    return Output(output, models.find_logits(output), captured, models.student)


def _captured(capture: Capture, wanted: bool) -> Mapping[str, Tensor]:
    if wanted:
        return capture.take()
    capture.discard()
    return {}


def check_outputs(fit: Fit, batch: Batch) -> None:
    """At the first step: class counts and label range, where a logits loss runs."""
    for label, loss in fit.objective.losses.items():
        needs = loss.needs
        if needs.labels and batch.labels is None:
            raise ConfigurationError(
                f"the loss {label!r} needs labels, but the loader gives none; expected (input, labels) "
                "or a mapping with 'labels'"
            )
        if needs.index and batch.index is None:
            raise ConfigurationError(f"the loss {label!r} needs the items' index; use kdengine.loader for the data")
        if needs.teacher and needs.logits and fit.models.align is None:
            check_classes(label, batch.student.logits.shape[-1], batch.teacher.logits.shape[-1])


def check_classes(label: str, student: int, teacher: int) -> None:
    """Refuse to compare different sets of classes silently."""
    if student != teacher:
        raise ConfigurationError(
            f"the loss {label!r} compares logits, but the student has {student} classes and the teacher {teacher}; "
            "pass classes='shared' to use the leading ones they share, or classes=[teacher class of each student class]"
        )
