"""What may be meant and may be a mistake: said once, before the first step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdengine.api import Batch, Output
from kdengine.engine.notices import Notices
from kdengine.engine.objective import Objective
from kdengine.engine.padding import warn_of_padded_logits

TOLERANCE = 0.02
"""How far a sum of probabilities in half precision may be from 1."""


def about_loss(label: str, objective: Objective, batch: Batch, notices: Notices) -> None:
    """Warn of what a loss on logits may read by mistake.

    Args:
        label: of the loss.
        objective: that it is part of.
        batch: as the loss sees it, with outputs.
        notices: of the engine.
    """
    loss = objective.losses[label]
    if loss.needs.classes == "exclusive":
        for who, output in {
            "student": batch.student,
            **({"teacher": batch.teacher} if loss.needs.teacher else {}),
        }.items():
            warn_of_probabilities(label, who, output, notices)
            warn_of_maps(label, who, output, notices)
        if loss.needs.labels:
            warn_of_several_labels(label, batch, notices)
    warn_of_padded_logits(label, loss, batch, notices)
    warn_of_target(label, objective, batch, notices)


def warn_of_probabilities(label: str, who: str, output: Output, notices: Notices) -> None:
    """Warn of logits whose rows are distributions already, as a model that ends in a softmax gives them."""
    if sums_to_one(output.logits):
        name = "" if output.module is None else f" {type(output.module).__name__}"
        notices.once(
            f"losses.{label}: the {who}{name} seems to end in a softmax: its outputs are not negative and each row "
            "sums to 1. The loss takes the softmax itself, which is nearly uniform over probabilities; take that layer "
            "off, or pass Engine(output=lambda output: output.log()), whose softmax is the probabilities themselves"
        )


def warn_of_maps(label: str, who: str, output: Output, notices: Notices) -> None:
    """Warn of logits of an image that were picked out of an output as they are, so that nothing says where classes are.

    A function that moves or computes something has thought of it, and so has one that returns the only tensor.
    """
    logits, given = output.logits, output.output
    if logits.ndim < 4 or isinstance(given, Tensor):
        return
    parts = given.values() if isinstance(given, Mapping) else given if isinstance(given, list | tuple) else ()
    if any(part is logits for part in parts):
        notices.once(
            f"losses.{label}: the last dimension of the {who}'s logits {tuple(logits.shape)} is taken for the classes. "
            "Where they are in dimension 1, as in models of images, move them to the end: "
            "Engine(output=lambda output: kdengine.classes_last(output[...]))"
        )


def warn_of_several_labels(label: str, batch: Batch, notices: Notices) -> None:
    """Warn of labels that are no distribution over classes: several labels per item, for a loss that takes one."""
    labels = batch.labels
    if not isinstance(labels, Tensor) or labels.shape != batch.student.logits.shape or not labels.numel():
        return
    sums = labels.sum(dim=-1, dtype=torch.float32)
    if bool((((sums - 1).abs() > TOLERANCE) & (sums.abs() > TOLERANCE)).any()):
        notices.once(
            f"losses.{label}: the labels {tuple(labels.shape)} are read as probabilities of classes that exclude one "
            f"another, but their rows sum to values from {sums.min().item():g} to {sums.max().item():g}. For several "
            "labels per item use BCE(target='labels')"
        )


def sums_to_one(logits: Tensor) -> bool:
    """Whether every row is a distribution.

    >>> sums_to_one(torch.tensor([[0.25, 0.75]])), sums_to_one(torch.tensor([[2.0, -1.0]]))
    (True, False)
    """
    if not logits.numel() or logits.shape[-1] < 2:
        return False
    rows = logits.detach()
    tolerance = min(TOLERANCE, 8 * logits.shape[-1] ** 0.5 * torch.finfo(logits.dtype).eps)  # rounding of the summands
    return bool((rows >= 0).all() & ((rows.sum(dim=-1, dtype=torch.float32) - 1).abs() <= tolerance).all())


def warn_of_target(label: str, objective: Objective, batch: Batch, notices: Notices) -> None:
    """Warn of a loss that compares with the teacher by default while labels of the outputs' form are read by none."""
    loss, labels = objective.losses[label], batch.labels
    if not getattr(loss, "target_by_default", False) or any(one.needs.labels for one in objective.losses.values()):
        return
    if isinstance(labels, Tensor) and labels.shape == batch.student.logits.shape:
        name = type(loss).__name__
        notices.once(
            f"losses.{label}: {name}() compares the student with its teacher, and no loss reads the labels "
            f"{tuple(labels.shape)}, which have the shape of its outputs. Write {name}(target='labels') to compare "
            f"with them, or {name}(target='teacher') where the teacher is meant"
        )
