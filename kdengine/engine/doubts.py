"""What may be meant and may be a mistake: said once, before the first step."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api import Batch, Output
from kdengine.engine.notices import Notices
from kdengine.engine.objective import Objective
from kdengine.engine.padding import warn_of_padded_logits


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
        warn_of_probabilities(label, "student", batch.student, notices)
        if loss.needs.teacher:
            warn_of_probabilities(label, "teacher", batch.teacher, notices)
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


def sums_to_one(logits: Tensor) -> bool:
    """Whether every row is a distribution.

    >>> sums_to_one(torch.tensor([[0.25, 0.75]])), sums_to_one(torch.tensor([[2.0, -1.0]]))
    (True, False)
    """
    if not logits.numel() or logits.shape[-1] < 2:
        return False
    rows = logits.detach()
    tolerance = min(0.02, 8 * logits.shape[-1] ** 0.5 * torch.finfo(logits.dtype).eps)  # rounding of the summands
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
