"""Generalised Jensen-Shannon divergence."""

from __future__ import annotations

from kdengine.api import Scalar
from kdengine.losses.logits.divergence import Divergence


class JSD(Divergence):
    """The generalised Jensen-Shannon divergence between teacher and student, times T^2, per item.

    ``T^2 * (beta KL(p || m) + (1 - beta) KL(q || m))`` with ``m = beta p + (1 - beta) q``, p = softmax(t / T) and
    q = softmax(s / T): the GKD divergence (Agarwal et al. 2024, equation 1), times T^2 as for ``kd``. It is bounded,
    whatever is masked. Divided by beta it tends to the forward KL as beta goes to 0, and divided by 1 - beta to the
    reverse KL as beta goes to 1. Computed by :func:`kdengine.ops.kd_loss`.

    References:
        Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024, equation 1; arXiv:2306.13649

    Args:
        temperature: T > 0.
        beta: the teacher's part in the mixture, strictly between 0 and 1.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`).

    Example:
        >>> JSD(beta=0.1).beta
        0.1
    """

    label = "jsd"

    def __init__(self, temperature: Scalar = 1.0, beta: Scalar = 0.5, standardize: bool = False) -> None:
        super().__init__(temperature, "jsd", beta, standardize=standardize)
