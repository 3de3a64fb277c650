"""Hard distillation: the teacher's decision as the label."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kdengine.api import Batch, Loss, Needs, Weight
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.divergence import per_row
from kdengine.ops import kd_loss


class Hard(Loss):
    """Cross-entropy between the student and the class that its teacher decides for, per item.

    ``CE(softmax(s), argmax t)``: the distillation term of DeiT (Touvron et al. 2021, equation 3), where it and the
    cross-entropy with the labels weigh 1/2 each: ``hard`` and ``ce``, both with ``weight = 0.5``. Of several likeliest
    classes the first one counts. Computed by :func:`kdengine.ops.kd_loss`. Where the student gives what its teacher
    gives it still sharpens the student, so nothing is claimed there.

    References:
        Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
        equation 3; arXiv:2012.12877

    Args:
        label_smoothing: e, from 0 to 1, of the teacher's decision: ``(1 - e) onehot + e / V``. Classes that the student
            masks then cost +inf.

    Example:
        >>> Hard(label_smoothing=0.1).needs.labels
        False
    """

    needs = Needs(classes="exclusive")

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_number("hard", "label_smoothing", label_smoothing, least=0.0, most=1.0)
        self.label_smoothing = label_smoothing

    def per_item(self, batch: Batch) -> Tensor:
        """The cross-entropy of each item, ``(B, ...)``, in float32 or wider."""
        return self._cross_entropy(batch, 1.0, "none")

    def weighted_sum(self, batch: Batch, weights: Mapping[str, Weight]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """One call of the operator, which writes the gradient at its final magnitude."""
        total = self._cross_entropy(batch, per_row(weights["loss"], batch.student.logits), "sum")
        return total, {"loss": total.detach()}

    def _cross_entropy(self, batch: Batch, weight: Weight, reduction: str) -> Tensor:
        student, teacher = batch.student.logits, batch.teacher.logits
        return kd_loss(
            student,
            teacher,
            teacher.argmax(dim=-1),
            soft_weight=0.0,
            hard_weight=weight,
            label_smoothing=self.label_smoothing,
            reduction=reduction,
        )
