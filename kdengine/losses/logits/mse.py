"""Squared error between outputs of any shape."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss, Needs
from kdengine.api.loss import wide
from kdengine.losses.arguments import check_choice
from kdengine.losses.logits.labels import labels_like


class MSE(Loss):
    """Squared error of the student's outputs with those of its teacher, or with the labels, per item.

    ``1/n sum_j (s_j - t_j)^2``, where t are the teacher's outputs with ``target="teacher"``, the default, and the
    labels with ``target="labels"``: ``(B, ...)`` of the outputs' shape, or ``(B,)`` for one output per item.

    For regression, reconstruction, embeddings and any other output that is a tensor ``(B, ...)``; n is the number of
    its elements in one item. On the logits of a classifier it is ``logit_mse``. An element where both outputs are
    equal, be they infinite, costs nothing.

    Raises:
        ConfigurationError: the outputs have different shapes, when it is computed.

    Args:
        target: what the student is compared with: ``"teacher"`` or ``"labels"``. Without it the teacher; the engine
            warns once where labels of the outputs' shape are then read by no loss.

    References:
        Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, equation 1; arXiv:1312.6184

    Example:
        >>> MSE(target="labels").needs.teacher
        False
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"

    def __init__(self, target: Literal["teacher", "labels"] | None = None) -> None:
        super().__init__()
        check_choice("mse", "target", target, ("teacher", "labels", None))
        self.target = target or "teacher"
        self.target_by_default = target is None
        if self.target == "labels":
            self.needs = Needs(teacher=False, labels=True)
            self.at_equality = None  # type: ignore[misc]  # there is no teacher to equal

    def valid(self, batch: Batch) -> None:
        """All items: any number may be a target."""

    def per_item(self, batch: Batch) -> Tensor:
        """The square of each element's error, ``(B, ...)``, in float32 or wider, which the engine averages."""
        student = wide(batch.student.logits)
        if self.target == "labels":
            return (student - labels_like(batch, student, "mse").to(student.dtype)).square()
        teacher = wide(batch.teacher.logits)
        if student.shape != teacher.shape:
            raise ConfigurationError(
                f"the loss mse needs outputs of one shape, but the student gave {tuple(student.shape)} and the teacher "
                f"{tuple(teacher.shape)}; Engine(output=fn) can reshape them"
            )
        return torch.where(student == teacher, 0.0, student - teacher).square()
