"""The student and the losses as one module, for a loop that wraps, trains and stores a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from kdengine.api import Progress


class ObjectiveModule(nn.Module):
    """Computes the objective in its forward pass; made by :meth:`kdengine.Engine.as_module`.

    Its parameters are the student's and those that losses bring (projectors), so DistributedDataParallel, an optimizer
    and a state dict hold both. The teacher is no part of it: it is not wrapped, not stored, and never put into training
    mode.

    Args:
        student: the model that trains.
        losses: all loss modules.
        compute: ``Engine.objective``.
    """

    def __init__(self, student: nn.Module, losses: nn.Module, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.student = student
        self.losses = losses
        self._compute = compute

    def forward(self, batch: Any, *, window: Sequence[Any] | None = None, progress: Progress | None = None) -> Tensor:
        """The weighted sum of all terms, with a graph; the arguments are those of ``Engine.objective``."""
        return self._compute(batch, window=window, progress=progress)
