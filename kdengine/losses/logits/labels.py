"""The labels that a loss reads, and which items a hard-label term counts."""

from __future__ import annotations

from torch import Tensor

from kdengine.api import Batch, ConfigurationError
from kdengine.api.batch import describe
from kdengine.api.labels import labelled as labelled


def labels_of(batch: Batch, loss: str) -> Tensor:
    """The batch's labels.

    Raises:
        ConfigurationError: there are none.
    """
    labels: object = batch.labels
    if labels is not None and not isinstance(labels, Tensor):
        raise ConfigurationError(
            f"the loss {loss} needs labels as a tensor, but the loader gives {describe(labels)}; say which are its "
            f"own: Engine(labels={{{loss!r}: lambda labels: labels[...]}}), by the loss's label"
        )
    if batch.labels is None:
        raise ConfigurationError(
            f"the loss {loss} needs labels, but the loader gives none; "
            "expected (input, labels) or a mapping with 'labels'"
        )
    return batch.labels


def labels_like(batch: Batch, logits: Tensor, loss: str) -> Tensor:
    """The batch's labels in the shape of the logits: for a loss that compares number with number.

    Raises:
        ConfigurationError: there are none, or of another shape. Nothing is broadcast, but labels ``(B, ...)`` are those
            of logits ``(B, ..., 1)``, and ``(B, H, W)`` those of ``(B, 1, H, W)``.
    """
    labels = labels_of(batch, loss)
    if labels.shape == logits.shape:
        return labels
    if logits.shape[-1:] == (1,) and labels.shape == logits.shape[:-1]:
        return labels.unsqueeze(-1)
    if logits.ndim > 2 and logits.shape[1] == 1 and labels.shape == (logits.shape[0], *logits.shape[2:]):
        return labels.unsqueeze(1)
    raise ConfigurationError(
        f"the loss {loss} needs labels of the shape of the student's outputs, {tuple(logits.shape)}, but they are "
        f"{describe(labels)}"
    )


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
