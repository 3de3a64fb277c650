"""The weighted terms of the loss: which rows take part, and each term's value and gradients."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdengine.ops import hard, topk
from kdengine.ops.divergences import DIVERGENCES, Needs
from kdengine.ops.pair import Scalar, softmax_pair

Terms = tuple[Tensor, Tensor, Tensor]
"""The loss, and the soft and the hard term that add up to it."""


class Rows(NamedTuple):
    """How the rows enter one term; masks are bool with the class dim kept, None means every row.

    Attributes:
        weight: what each row's value is multiplied by.
        active: the rows that are read; a row of zero weight is not.
        divisor: what the sum is divided by: the number of rows of the term for a mean, or 1.
    """

    weight: Scalar
    active: Tensor | None
    divisor: float | Tensor

    def select(self, values: Tensor) -> Tensor:
        """Put zeros where a row is not active, whatever stood there."""
        return values if self.active is None else torch.where(self.active, values, 0)

    def share(self) -> Scalar:
        """The factor of one row's value in the reduced term."""
        return self.weight / self.divisor


class Soft(NamedTuple):
    """The divergence between teacher and student."""

    rows: Rows
    temperature: Scalar
    divergence: str
    beta: float
    indices: Tensor | None
    tail: str


class Hard(NamedTuple):
    """The cross-entropy with labels: class ids with the class dim kept at size 1, or probabilities."""

    rows: Rows
    labels: Tensor
    unknown: Tensor | None
    smoothing: float


class Value(NamedTuple):
    """A term's weighted value of each row (class dim kept) and its gradients, where they are needed."""

    rows: Tensor
    student: Tensor | None
    teacher: Tensor | None


def soft_value(student: Tensor, teacher: Tensor, soft: Soft, dim: int, needs: Needs) -> Value:
    """Compute weight T^2 D(p_t, p_s) in every row; its gradient carries T, as 1/T comes from s/T."""
    listed, s, t = None, student, teacher
    if soft.indices is not None:
        listed = topk.reduce_to_listed(student, teacher, soft.indices, soft.tail, dim)
        s, t = listed.student, listed.teacher
    elif student.shape[dim] != teacher.shape[dim]:
        shared = min(student.shape[dim], teacher.shape[dim])
        s, t = student.narrow(dim, 0, shared), teacher.narrow(dim, 0, shared)
    pair = softmax_pair(s, t, soft.temperature, dim)
    value, to_student, to_teacher = DIVERGENCES[soft.divergence](pair, soft.beta, dim, needs)
    scale = soft.rows.share() * soft.temperature
    if to_student is not None:
        to_student = to_student * scale
        if listed is not None:
            to_student = topk.student_gradient(to_student, listed, student, dim)
        to_student = soft.rows.select(_padded(to_student, student, dim))
    if to_teacher is not None:
        to_teacher = to_teacher * scale
        if listed is not None:
            to_teacher = topk.teacher_gradient(to_teacher, listed, dim)
        to_teacher = soft.rows.select(_padded(to_teacher, teacher, dim))
    return Value(soft.rows.select(value * (scale * soft.temperature)), to_student, to_teacher)


def hard_value(student: Tensor, term: Hard, dim: int, need: bool) -> Value:
    """Compute weight CE(s, labels) in every row, over all of the student's classes."""
    if term.labels.is_floating_point():
        value, gradient = hard.with_probabilities(student, term.labels, term.smoothing, dim, need)
    else:
        value, gradient = hard.with_class_ids(student, term.labels, term.unknown, term.smoothing, dim, need)
    share = term.rows.share()
    if gradient is not None:
        gradient = term.rows.select(gradient * share)
    return Value(term.rows.select(value * share), gradient, None)


def _padded(gradient: Tensor, like: Tensor, dim: int) -> Tensor:
    """Add zeros for the classes that the other side does not have."""
    missing = list(like.shape)
    missing[dim] -= gradient.shape[dim]
    return gradient if missing[dim] == 0 else torch.cat([gradient, gradient.new_zeros(missing)], dim)
