"""The divergences between two softmaxes, with their gradients with respect to the scaled logits s/T and t/T."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, where

from kdengine.ops.pair import SoftmaxPair

HUGE = 1e30
"""Stands for an infinite log ratio where its product with a zero probability has to be zero."""


class Divergence(NamedTuple):
    """The value of each row (class dim kept) and the gradients, or None for the side that needs none."""

    value: Tensor
    student: Tensor | None
    teacher: Tensor | None


Needs = tuple[bool, bool]
"""Whether the student and whether the teacher wants a gradient."""


def forward_kl(pair: SoftmaxPair, beta: float, dim: int, needs: Needs) -> Divergence:  # noqa: ARG001
    """KL(p_t || p_s) = sum p_t (log p_t - log p_s).

    Computed as sum [(p_s - p_t) - p_t d] with d = log p_s - log p_t: the first part is zero in exact
    arithmetic and makes every summand non-negative.
    """
    p, d = pair.teacher, pair.log_ratio
    mean = (p * d.clamp(max=HUGE)).sum(dim, keepdim=True)
    return Divergence(
        (pair.residual - mean).clamp(min=0),
        pair.difference if needs[0] else None,
        -_centred(p, d, dim) if needs[1] else None,
    )


def reverse_kl(pair: SoftmaxPair, beta: float, dim: int, needs: Needs) -> Divergence:  # noqa: ARG001
    """KL(p_s || p_t) = sum p_s (log p_s - log p_t), computed as sum [p_s d - (p_s - p_t)]."""
    p, d = pair.student, pair.log_ratio
    mean = (p * d.clamp(min=-HUGE)).sum(dim, keepdim=True)
    return Divergence(
        (mean - pair.residual).clamp(min=0),
        _centred(p, d, dim) if needs[0] else None,
        -pair.difference if needs[1] else None,
    )


def jsd(pair: SoftmaxPair, beta: float, dim: int, needs: Needs) -> Divergence:
    """Beta KL(p_t || m) + (1 - beta) KL(p_s || m) with m = beta p_t + (1 - beta) p_s."""
    d = pair.log_ratio.clamp(-HUGE, HUGE)
    # log m - log max(p_s, p_t): exp of a non-positive number only, so nothing overflows.
    smaller = (-d.abs()).expm1()
    to_larger = where(d > 0, beta * smaller, (1 - beta) * smaller).log1p()  # two numbers would be float32 in `where`
    from_student = to_larger - d.clamp(max=0)  # log m - log p_s
    from_teacher = to_larger + d.clamp(min=0)  # log m - log p_t
    value = beta * pair.teacher * from_teacher + (1 - beta) * pair.student * from_student
    return Divergence(
        (-value.sum(dim, keepdim=True)).clamp(min=0),
        (beta - 1) * _centred(pair.student, from_student, dim) if needs[0] else None,
        -beta * _centred(pair.teacher, from_teacher, dim) if needs[1] else None,
    )


def _centred(p: Tensor, values: Tensor, dim: int) -> Tensor:
    """Return p (v - sum p v): the gradient, through a softmax, of a function whose derivative by p is v.

    Counted from the likeliest class's value, whose p may be near 1: there v - sum p v would keep only rounding.
    """
    values = values.clamp(-HUGE, HUGE)
    values = values - values.gather(dim, p.argmax(dim, keepdim=True))
    return p * (values - (p * values).sum(dim, keepdim=True))


DIVERGENCES: dict[str, Callable[[SoftmaxPair, float, int, Needs], Divergence]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}
