"""Squared error between outputs of any shape."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss
from kdengine.api.loss import wide


class MSE(Loss):
    """Squared error between the outputs of student and teacher: ``1/n sum_j (s_j - t_j)^2`` per item.

    For regression, reconstruction, embeddings and any other output that is a tensor ``(B, ...)``; n is the number of
    its elements in one item. On the logits of a classifier it is ``logit_mse``. An element where both outputs are
    equal, be they infinite, costs nothing.

    Raises:
        ConfigurationError: the outputs have different shapes, when it is computed.

    References:
        Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, equation 1; arXiv:1312.6184

    Example:
        >>> MSE().at_equality
        'zero'
    """

    at_equality = "zero"

    def per_item(self, batch: Batch) -> Tensor:
        """The square of each element's error, ``(B, ...)``, in float32 or wider, which the engine averages."""
        student, teacher = wide(batch.student.logits), wide(batch.teacher.logits)
        if student.shape != teacher.shape:
            raise ConfigurationError(
                f"the loss mse needs outputs of one shape, but the student gave {tuple(student.shape)} and the teacher "
                f"{tuple(teacher.shape)}; Engine(output=fn) can reshape them"
            )
        return torch.where(student == teacher, 0.0, student - teacher).square()
