"""Binary cross-entropy with the teacher's probabilities of many labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Scalar
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_number
from kdengine.losses.logits.bernoulli import bernoulli_entropy, bernoulli_kl


class BCE(Loss):
    """Binary cross-entropy between teacher and student, label by label, times T^2: for several labels per item.

    ``T^2 * 1/V sum_v -(p_v log q_v + (1 - p_v) log(1 - q_v))`` per item, with p = sigmoid(t / T) and q = sigmoid(s /
    T): the soft targets of Hinton et al. 2015, section 2, for labels that do not exclude one another. It is
    ``binary_kl`` plus T^2 times the teacher's entropy, with the mean over labels in place of the sum: its minimum, not
    zero, is where the student gives what its teacher gives. Labels that both mask (-inf) are left out, and V counts the
    others.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2, for each label;
        arXiv:1503.02531

    Args:
        temperature: T > 0.

    Example:
        >>> BCE().at_equality
        'minimum'
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "minimum"

    def __init__(self, temperature: Scalar = 1.0) -> None:
        super().__init__()
        check_number("bce", "temperature", temperature, above=0.0)
        self.temperature: float = temperature

    def per_item(self, batch: Batch) -> Tensor:
        """The mean over labels of each item, ``(B, ...)``, in float32 or wider."""
        student, teacher = wide(batch.student.logits), wide(batch.teacher.logits)
        labels = (~((student == -torch.inf) & (teacher == -torch.inf))).sum(dim=-1).clamp(min=1)
        entropy = bernoulli_entropy(teacher, self.temperature)
        values = bernoulli_kl(student, teacher, self.temperature) + self.temperature**2 * entropy
        return values.sum(dim=-1) / labels
