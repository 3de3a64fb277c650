"""The contract of a batch transform: mixup and its kin."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from kdengine.api.batch import Batch
from kdengine.api.given import Given


class BatchTransform(Given, ABC):
    """Changes a whole optimizer step's batch before the models see it.

    It gets the global batch of the step (all micro-batches together) and a generator whose state is a function of
    (seed, step) alone, so that the result does not depend on how the batch is split.
    """

    @abstractmethod
    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return a new batch; draw randomness from ``generator`` only."""
