"""Cross-entropy with softened targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from kdengine.api import Batch, Scalar, Weight
from kdengine.api.loss import weigh
from kdengine.losses.logits.divergence import Divergence
from kdengine.losses.logits.entropy import entropy
from kdengine.losses.logits.standardize import standardize as standardized


class SoftCE(Divergence):
    """Cross-entropy between the teacher's softened outputs and the student's, times T^2, per item.

    ``T^2 * -sum_v p_v log q_v`` with p = softmax(t / T) and q = softmax(s / T): the soft term as Hinton et al. 2015,
    section 2, write it. It is ``kd`` plus T^2 times the teacher's entropy, which has no gradient: the gradients are
    those of ``kd``, and the value is at its minimum, not zero, where the student gives what its teacher gives. Computed
    by :func:`kdengine.ops.kd_loss`.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2; arXiv:1503.02531

    Args:
        temperature: T > 0.
        standardize: whether to standardise the logits first (:func:`~kdengine.losses.logits.standardize.standardize`).

    Example:
        >>> SoftCE().at_equality
        'minimum'
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "minimum"
    label = "soft_ce"

    def __init__(self, temperature: Scalar = 4.0, standardize: bool = False) -> None:
        super().__init__(temperature, standardize=standardize)

    def per_item(self, batch: Batch) -> Tensor:
        """The cross-entropy of each item, ``(B, ...)``, in float32 or wider."""
        return self.divergences(batch) + self._entropy(batch)

    def weighted_sum(self, batch: Batch, weights: Mapping[str, Weight]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """One call of the operator, which writes the gradient at its final magnitude; then the teacher's entropy."""
        total, sums = super().weighted_sum(batch, weights)
        constant = weigh(self._entropy(batch), weights["loss"])
        return total + constant, {"loss": sums["loss"] + constant}

    def _entropy(self, batch: Batch) -> Tensor:
        teacher = batch.teacher.logits.detach()
        return self.temperature**2 * entropy(standardized(teacher) if self.standardize else teacher, self.temperature)
