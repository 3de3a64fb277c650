"""Running teacher and student on a batch."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from kdengine.api import Batch, ConfigurationError, Output
from kdengine.api.structure import tensors
from kdengine.engine.batching import call_model, device_of, move
from kdengine.engine.fit import Models
from kdengine.engine.given import given_to, told_whose
from kdengine.engine.precision import Precision


def run_teacher(models: Models, precision: Precision, batch: Batch, *, features: bool = True) -> Output:
    """The teacher's output; without a graph when the source is frozen."""
    source = models.source
    if source is None:
        raise ConfigurationError("a loss or metric needs a teacher, but Engine(teacher=...) was not given")
    capture = models.teacher_features if features else None
    if capture is not None:
        capture.start()
    before = versions(batch.inputs)
    with nullcontext() if source.evolving else torch.no_grad(), told_whose("teacher"):
        output = precision.run_model(source.forward, batch_of_teacher(models, batch))
    if versions(batch.inputs) != before:
        raise ConfigurationError(
            "the teacher changes its inputs in place, and the student would get what is left of them: its first module "
            "(inplace=False), its transform or teacher_inputs must make new tensors; or give it a copy: "
            "Engine(teacher_inputs=lambda inputs: inputs.clone())"
        )
    captured = None if capture is None else move(capture.take(), device_of(batch.inputs))
    logits = output if source.gives_logits else models.heads.find(output)
    return Output(output, logits, captured, models.teacher)


def versions(inputs: Any) -> list[int]:
    """How often each tensor was written in place; PyTorch does not count it of one from inference mode."""
    return [tensor._version for tensor in tensors(inputs) if not tensor.is_inference()]


def batch_of_teacher(models: Models, batch: Batch) -> Batch:
    """The batch with the inputs that the teacher gets."""
    if "teacher" not in models.own_inputs:
        return batch
    inputs = given_to(models, "teacher", batch)
    return batch.replace(inputs=inputs, size=batch.size, host=None)  # a cache keeps what belongs to these inputs


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
    with told_whose("student"):
        output = precision.run_model(call_model, model or models.student, given_to(models, "student", batch))
    captured = None if capture is None else capture.take()
    return Output(output, models.heads.find(output), captured, models.student)
