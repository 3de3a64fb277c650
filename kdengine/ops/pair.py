"""Two softmaxes of one row, and how they differ, without cancellation."""

from typing import NamedTuple

from torch import Tensor, addcmul

Scalar = float | Tensor
"""A number, or a tensor that broadcasts against the logits (0-dim, or one value per row with the class dim kept)."""


class SoftmaxPair(NamedTuple):
    """What every divergence is made of; all but `residual` have the shape of the logits.

    Attributes:
        student: p_s = softmax(s / T).
        teacher: p_t = softmax(t / T).
        log_ratio: log p_s - log p_t, up to a common rounding error of the row; -inf and +inf where one side
            is masked, 0 where both are.
        difference: p_s - p_t, accurate relative to the largest difference of the row.
        residual: the sum of p_s - p_t that `log_ratio` implies. It is zero but for the rounding of the two
            normalisers, and taking it into account cancels that rounding to first order.
    """

    student: Tensor
    teacher: Tensor
    log_ratio: Tensor
    difference: Tensor
    residual: Tensor


def softmax_pair(student: Tensor, teacher: Tensor, temperature: Scalar, dim: int) -> SoftmaxPair:
    """Compute both softmaxes and their differences.

    At a high temperature, or late in training, p_s and p_t agree in most digits: subtracting them, or their
    logarithms, keeps only rounding. With d = log p_s - log p_t taken from the logits,
    p_s - p_t = (p_s + p_t) tanh(d / 2) holds its relative accuracy, is 0 where d is, and cannot overflow.
    """
    x = _centred(student, temperature, dim)
    y = _centred(teacher, temperature, dim)
    p_s, p_t = x.exp(), y.exp()
    z_s, z_t = p_s.sum(dim, keepdim=True), p_t.sum(dim, keepdim=True)
    p_s, p_t = p_s / z_s, p_t / z_t
    total = p_s + p_t
    # Where both are masked (or underflow) -inf - -inf would give NaN; a NaN in the inputs reaches `total` and stays.
    log_ratio = ((x - y) - (z_s / z_t).log()).masked_fill(total == 0, 0)
    difference = total * (log_ratio / 2).tanh()
    residual = difference.sum(dim, keepdim=True)
    return SoftmaxPair(p_s, p_t, log_ratio, addcmul(difference, p_s, residual, value=-1), residual)


def _centred(logits: Tensor, temperature: Scalar, dim: int) -> Tensor:
    centred = logits - logits.amax(dim, keepdim=True)
    if isinstance(temperature, float) and temperature == 1:
        return centred
    return centred / temperature
