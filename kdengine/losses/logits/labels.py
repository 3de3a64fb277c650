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
        raise ConfigurationError(
            f"the loss {loss} needs labels, but the loader gives none; "
            "expected (input, labels) or a mapping with 'labels'"
        )
    return batch.labels


FEW = 512
"""Up to so many class ids on the host are read as a list, which is cheaper than any operation on a tensor."""


def labelled(labels: Tensor, ignore_index: int) -> Tensor | None:
    """Bool mask of labelled items: class ids other than ``ignore_index``, probability rows that are not all zero.

    Returns:
        the mask, or None where all of a short batch's items are labelled.
    """
    if labels.is_floating_point():
        return labels.any(dim=-1)
    few = labels.ndim == 1 and labels.device.type == "cpu" and labels.numel() <= FEW
    if few and ignore_index not in labels.tolist():
        return None
    return labels != ignore_index
