"""Mutual learning: a teacher that learns from the student by the student's own losses, with the roles exchanged."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from kdengine.api import Batch, ConfigurationError, Loss, Schedule

PEER = "peer_"
"""What the labels of the teacher's losses begin with; the rest is the label of the student's."""


def peer_losses(losses: Mapping[str, Loss]) -> dict[str, Loss]:
    """The losses of a teacher that learns: copies of those of the student's that read logits and labels alone.

    A feature's path is one in the student or in the teacher, and means nothing in the other model.

    Raises:
        ConfigurationError: there is none, or a label is taken.
    """
    mutual = {f"{PEER}{label}": loss for label, loss in losses.items() if _is_mutual(loss)}
    if not mutual:
        raise ConfigurationError(
            f"a teacher that learns does so by the student's losses on logits and labels, but none of {list(losses)} "
            "is one; add kd and ce, for instance"
        )
    if taken := [label for label in mutual if label in losses]:
        raise ConfigurationError(
            f"the label {taken[0]!r} is that of the teacher's own {taken[0].removeprefix(PEER)!r}; choose another one"
        )
    return copy.deepcopy(mutual)


def peer_weights(weights: Mapping[str, float | Schedule], peers: Mapping[str, Loss]) -> dict[str, float | Schedule]:
    """The weights of the teacher's losses: those of the student's; a schedule is one of its own."""
    return {label: copy.deepcopy(weights.get(label.removeprefix(PEER), 1.0)) for label in peers}


def _is_mutual(loss: Loss) -> bool:
    needs = loss.needs
    return not (needs.student_features or needs.teacher_features or needs.teacher_gradients)


def exchanged(batch: Batch) -> Batch:
    """The batch as the teacher learns from it: it is the student, and the student is its teacher, without a graph."""
    return batch.replace(student=batch.teacher, teacher=batch.student.detach())


def settled(batch: Batch) -> Batch:
    """The batch as the student learns from it: the teacher has no graph."""
    return batch.replace(teacher=batch.teacher.detach())
