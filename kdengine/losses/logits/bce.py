"""Binary cross-entropy with the teacher's probabilities of many labels, or with the labels themselves."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from kdengine.api import Batch, ConfigurationError, Loss, Needs, Scalar
from kdengine.api.labels import IGNORE_INDEX
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_choice, check_number
from kdengine.losses.logits.bernoulli import bernoulli_entropy, bernoulli_kl
from kdengine.losses.logits.labels import labels_like


class BCE(Loss):
    """Binary cross-entropy of the student with its teacher, or with the labels: for several labels per item.

    With ``target="teacher"``, the default, label by label and times T^2:
    ``T^2 * 1/V sum_v -(p_v log q_v + (1 - p_v) log(1 - q_v))`` per item, with p = sigmoid(t / T) and q = sigmoid(s /
    T): the soft targets of Hinton et al. 2015, section 2, for labels that do not exclude one another. It is
    ``binary_kl`` plus T^2 times the teacher's entropy, with the mean over labels in place of the sum: its minimum, not
    zero, is where the student gives what its teacher gives. Labels that both mask (-inf) are left out, and V counts the
    others.

    With ``target="labels"`` y takes the place of p, at T = 1: ``1/V sum_v -(y_v log q_v + (1 - y_v) log(1 - q_v))``,
    which is ``torch.nn.BCEWithLogitsLoss``. The labels have the shape of the logits, ``(B, ..., V)``, or ``(B,)`` for
    one logit per item, and are numbers from 0 to 1 or integers 0 and 1. Labels equal to ``ignore_index`` are left out,
    and V counts the others.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2, for each label;
        arXiv:1503.02531

    Args:
        temperature: T > 0; 1 with labels.
        target: what the student is compared with: ``"teacher"`` or ``"labels"``. Without it the teacher; the engine
            warns once where labels of the logits' shape are then read by no loss.
        ignore_index: label that is not known, with ``target="labels"``.

    Example:
        >>> BCE(target="labels").needs.teacher
        False
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "minimum"

    def __init__(
        self,
        temperature: Scalar = 1.0,
        target: Literal["teacher", "labels"] | None = None,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        super().__init__()
        check_number("bce", "temperature", temperature, above=0.0)
        check_choice("bce", "target", target, ("teacher", "labels", None))
        if target == "labels" and temperature != 1.0:
            raise ConfigurationError(f"bce: labels have no temperature, so it must be 1, got {temperature!r}")
        self.temperature: float = temperature
        self.target = target or "teacher"
        self.target_by_default = target is None
        self.ignore_index = ignore_index
        if self.target == "labels":
            self.needs = Needs(teacher=False, labels=True)
            self.at_equality = None  # type: ignore[misc]  # there is no teacher to equal

    def valid(self, batch: Batch) -> Tensor | None:
        """With labels, the items of which at least one label is known."""
        if self.target == "teacher" or not isinstance(batch.labels, Tensor):
            return None
        known = batch.labels != self.ignore_index
        return known if known.ndim < 2 else known.flatten(1).any(dim=-1)

    def inspect(self, batch: Batch) -> None:
        """Refuse labels that are no probabilities: 255 in a mask of 0 and 255, or class ids."""
        if self.target == "labels":
            labels = self._labels(batch)
            known = labels[labels != self.ignore_index]
            if known.numel() and not bool(((known >= 0) & (known <= 1)).all()):
                raise ConfigurationError(
                    "bce takes labels from 0 to 1, one for each logit, or ignore_index "
                    f"({self.ignore_index}), but they are from {known.min().item():g} to {known.max().item():g}"
                )

    def per_item(self, batch: Batch) -> Tensor:
        """The mean over labels of each item, ``(B, ...)``, in float32 or wider."""
        if self.target == "labels":
            return self._with_labels(batch)
        student, teacher = wide(batch.student.logits), wide(batch.teacher.logits)
        if student.ndim == 1:  # one number per item, (B,)
            return bernoulli_kl(student, teacher, self.temperature) + self._entropy(teacher)
        labels = (~((student == -torch.inf) & (teacher == -torch.inf))).sum(dim=-1).clamp(min=1)
        values = bernoulli_kl(student, teacher, self.temperature) + self._entropy(teacher)
        return values.sum(dim=-1) / labels

    def _entropy(self, teacher: Tensor) -> Tensor:
        return self.temperature**2 * bernoulli_entropy(teacher, self.temperature)

    def _labels(self, batch: Batch) -> Tensor:
        return labels_like(batch, batch.student.logits, "bce")

    def _with_labels(self, batch: Batch) -> Tensor:
        student, labels = wide(batch.student.logits), self._labels(batch)
        known = labels != self.ignore_index
        targets = torch.where(known, labels, 0).to(student.dtype)
        values = F.binary_cross_entropy_with_logits(student, targets, reduction="none")
        if student.ndim == 1:  # one number per item, (B,)
            return torch.where(known, values, 0.0)
        return torch.where(known, values, 0.0).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)
