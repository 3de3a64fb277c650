"""A teacher known by its k largest values: both sides reduced to k classes, or to k and a bin of the rest."""

from typing import NamedTuple

import torch
from torch import Tensor

TOO_MUCH = 1.05
"""Values whose probabilities sum to more than this are no log-probabilities, in bfloat16 either."""


class Listed(NamedTuple):
    """Student and teacher over the same classes, and what their gradients need to find the way back.

    Attributes:
        student: the student's logits at the listed classes; with a bin, one more column for all others.
        teacher: the teacher's values at the same classes.
        indices: the class of each listed column, absent entries (teacher value -inf) at class 0.
        rest: p(class | not listed) of the student at temperature 1; None without a bin.
        share: what a listed value takes from the bin: d log(tail) = -sum share_i dv_i; None without a bin.
    """

    student: Tensor
    teacher: Tensor
    indices: Tensor
    rest: Tensor | None
    share: Tensor | None


def reduce_to_listed(student: Tensor, teacher: Tensor, indices: Tensor, tail: str, dim: int) -> Listed:
    """Gather the student's logits at the teacher's classes and, for `tail="bin"`, sum up the others."""
    present = teacher != -torch.inf
    unknown = ((indices < 0) | (indices >= student.shape[dim])) & present
    indices = indices.masked_fill(unknown | ~present, 0)
    listed = student.gather(dim, indices).masked_fill(~present, -torch.inf).masked_fill(unknown, torch.nan)
    if tail == "renormalize":
        return Listed(listed, teacher, indices, None, None)
    unlisted, rest = _unlisted(student, indices, present, dim)
    mass = tail_mass(teacher, dim)
    mass = mass.masked_fill(mass < 1 - TOO_MUCH, torch.nan).clamp(min=0)
    # Without an unlisted class in the student there is no bin: what is left of the teacher's mass is rounding.
    mass = mass.masked_fill(unlisted == -torch.inf, 0)
    share = torch.where(mass > 0, teacher.exp() / mass, 0)
    return Listed(torch.cat([listed, unlisted], dim), torch.cat([teacher, mass.log()], dim), indices, rest, share)


def tail_mass(teacher: Tensor, dim: int) -> Tensor:
    """1 - sum exp(value): what the listed log-probabilities leave to all other classes (class dim kept).

    The largest is subtracted by expm1, so that a small tail beside one large probability keeps its digits.
    """
    largest, where = teacher.max(dim, keepdim=True)
    return -largest.expm1() - teacher.exp().scatter(dim, where, 0).sum(dim, keepdim=True)


def _unlisted(student: Tensor, indices: Tensor, present: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Log of the summed exponentials of all unlisted logits, and each one's part of that sum."""
    # Absent entries share index 0 with a class that may be listed: adding their 0 leaves it listed.
    listed = torch.zeros_like(student, dtype=torch.int32).scatter_add(dim, indices, present.int()) > 0
    logits = student.masked_fill(listed, -torch.inf)
    total = logits.logsumexp(dim, keepdim=True)
    return total, (logits - total.masked_fill(total == -torch.inf, 0)).exp()


def student_gradient(gradient: Tensor, listed: Listed, like: Tensor, dim: int) -> Tensor:
    """Carry a gradient over the listed columns back to all of the student's classes."""
    count = listed.indices.shape[dim]
    start = torch.zeros_like(like) if listed.rest is None else gradient.narrow(dim, count, 1) * listed.rest
    return start.scatter_add(dim, listed.indices, gradient.narrow(dim, 0, count))


def teacher_gradient(gradient: Tensor, listed: Listed, dim: int) -> Tensor:
    """Carry a gradient over the listed columns back to the teacher's k values."""
    count = listed.indices.shape[dim]
    if listed.share is None:
        return gradient
    return gradient.narrow(dim, 0, count) - gradient.narrow(dim, count, 1) * listed.share
