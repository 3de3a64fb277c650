"""The labels that a loss reads, and which items a hard-label term counts."""

from __future__ import annotations

from torch import Tensor

from kdengine.api import Batch, ConfigurationError
from kdengine.api.batch import describe


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


def class_ids(batch: Batch, loss: str) -> Tensor:
    """The batch's labels, which must be class ids: for a loss that treats an item's own class apart.

    Raises:
        ConfigurationError: there are none, or they are probabilities.
    """
    labels = labels_of(batch, loss)
    if labels.is_floating_point():
        raise ConfigurationError(
            f"the loss {loss} needs class ids as labels, one class per item, but the batch has {describe(labels)}: "
            "probabilities, as mixup or cutmix make them. Leave those transforms out, or use the loss kd"
        )
    return labels


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
