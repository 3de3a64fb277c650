"""Fidelity of the student to its teacher."""

from __future__ import annotations

from typing import ClassVar

from kdengine.api import Batch
from kdengine.api.loss import Classes
from kdengine.metrics.items import IGNORE_INDEX, Share, batch_mask


class Agreement(Share):
    """Share of items for which student and teacher name the same class: ``argmax(s) == argmax(t)``, from 0 to 1.

    Source: Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021, section 3 (top-1 agreement).
    An item counts whether it is labelled or not, unless ``batch.mask`` is False; where one item has many labels
    (tokens, pixels), the positions marked with ``ignore_index`` are left out as padding. Undefined (None) where student
    and teacher have other classes, unless ``Engine(classes=...)`` says which correspond.

    Args:
        ignore_index: class id that marks padding within an item.
    """

    needs_teacher: ClassVar[bool] = True
    classes: ClassVar[Classes | None] = "exclusive"

    def __init__(self, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def update(self, batch: Batch) -> None:
        """Count one batch."""
        student, teacher = batch.student.logits, batch.teacher.logits
        if student.shape != teacher.shape:
            return  # classes that do not correspond: undefined
        said = student.argmax(dim=-1)
        same = said == teacher.argmax(dim=-1)
        comparable = ~(student.isnan().any(dim=-1) | teacher.isnan().any(dim=-1))
        counts = batch_mask(batch, said)
        labels = batch.labels
        if labels is not None and labels.ndim > 1 and labels.shape == said.shape:
            counts = counts & (labels != self.ignore_index)
        self.add((same & comparable).flatten(), counts.flatten())
