"""The contract of a metric: what an evaluation reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from kdengine.api.batch import Batch


class Metric(ABC):
    """A number that an evaluation accumulates over its batches.

    State stays on the device until :meth:`compute`, so that an evaluation synchronizes once.

    Attributes:
        needs_teacher: whether :meth:`update` reads ``batch.teacher``.
        higher_is_better: direction of improvement, for "best" checkpoints.
    """

    needs_teacher: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def reset(self) -> None:
        """Forget everything; runs before each evaluation."""

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Take in one batch with outputs, under ``torch.no_grad``."""

    @abstractmethod
    def compute(self) -> float | None:
        """The metric over all batches since :meth:`reset`; None when it is undefined (no labelled item)."""
