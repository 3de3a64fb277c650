"""Cross-entropy with the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kdengine.api import Batch, Loss, Needs
from kdengine.api.loss import wide
from kdengine.losses.logits.labels import labelled, labels_of


class CE(Loss):
    """Cross-entropy between the student and class ids or probabilities: ``-sum_v y_v log softmax(s)_v`` per item.

    Label smoothing e replaces y by ``(1 - e) y + e / V`` (Szegedy et al. 2016, section 7).

    References:
        Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7;
        arXiv:1512.00567

    Args:
        label_smoothing: e, from 0 to 1.
        ignore_index: label of an unlabelled item, which is left out.

    Example:
        >>> CE(label_smoothing=0.1).needs.teacher
        False
    """

    needs = Needs(teacher=False, labels=True, classes="exclusive")

    def __init__(self, label_smoothing: float = 0.0, ignore_index: int = -100) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def valid(self, batch: Batch) -> Tensor | None:
        """Labelled items."""
        return labelled(labels_of(batch, "ce"), self.ignore_index)

    def per_item(self, batch: Batch) -> Tensor:
        """Cross-entropy of each item, ``(B, ...)``, in float32 or wider; 0 where unlabelled."""
        logits, labels = wide(batch.student.logits), labels_of(batch, "ce")
        labels = labels.to(logits.dtype).movedim(-1, 1) if labels.is_floating_point() else labels.long()
        return F.cross_entropy(
            logits.movedim(-1, 1),
            labels,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
