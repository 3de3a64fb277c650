"""Total variation distance."""

from __future__ import annotations

from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Scalar
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.standardize import logits_of


class TVD(Loss):
    """Total variation distance between teacher and student, times T^2, per item.

    ``T^2 * 1/2 sum_v |p_v - q_v|`` with p = softmax(t / T) and q = softmax(s / T): the TVD variant of f-DISTILL (Wen et
    al. 2023), times T^2 as for ``kd``. It is at most T^2. Its gradient does not shrink as the student comes
    near; where a class's probabilities are equal, the subgradient is 0.

    References:
        Wen, Li, Du, Mou, "f-Divergence Minimization for Sequence-Level Knowledge Distillation", ACL 2023, section 2.2;
        arXiv:2307.15190

    Args:
        temperature: T > 0.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`).

    Example:
        >>> TVD().temperature
        1.0
    """

    at_equality = "zero"
    needs = Needs(classes="exclusive")

    def __init__(self, temperature: Scalar = 1.0, standardize: bool = False) -> None:
        super().__init__()
        self.standardize = standardize
        check_number("tvd", "temperature", temperature, above=0.0)
        self.temperature: float = temperature

    def per_item(self, batch: Batch) -> Tensor:
        """The distance of each item, ``(B, ...)``, in float32 or wider."""
        student, teacher = (
            (wide(logits) / self.temperature).softmax(dim=-1) for logits in logits_of(batch, self.standardize)
        )
        return self.temperature**2 * 0.5 * (student - teacher).abs().sum(dim=-1)
