"""Which items a hard-label term counts."""

from __future__ import annotations

from torch import Tensor

from kdengine.api import Batch, ConfigurationError


def labels_of(batch: Batch, loss: str) -> Tensor:
    """The batch's labels.

    Raises:
        ConfigurationError: there are none.
    """
    if batch.labels is None:
        raise ConfigurationError(f"the loss {loss} needs labels, but the loader gives none")
    return batch.labels


def labelled(labels: Tensor, ignore_index: int) -> Tensor:
    """Bool mask of labelled items: class ids other than ``ignore_index``, probability rows that are not all zero."""
    if labels.is_floating_point():
        return labels.any(dim=-1)
    return labels != ignore_index
