"""Weights of items: which items count at all, what they come to, and how a term's values are weighed by them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError
from kdengine.api.errors import LossError


def check_weights(batch: Batch) -> None:
    """Refuse weights that are negative or not finite.

    Raises:
        ConfigurationError: it names the first one.
    """
    if batch.weights is None:
        return
    bad = ~torch.isfinite(batch.weights) | (batch.weights < 0)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise ConfigurationError(
            f"the weights of a batch's items must be finite and not negative, got {float(batch.weights[at])} for item "
            f"{at if batch.index is None else int(batch.index[at])}; a weight of 0 leaves an item out"
        )


def counting(batch: Batch) -> Tensor | None:
    """Which items count: those that ``mask`` leaves in and that have a weight; None for all."""
    if batch.weights is None:
        return batch.mask
    weighty = batch.weights != 0
    return weighty if batch.mask is None else weighty & batch.mask


def total(batch: Batch, mask: Tensor | None) -> float:
    """What a term's valid items come to: their number, or with weights the sum of ``weight * valid`` in float64."""
    if batch.weights is None:
        return batch.size if mask is None else int(mask.sum())
    weights = batch.weights.double()
    if mask is None:
        return math.fsum(weights.tolist())
    valid = mask.reshape(len(mask), -1).sum(dim=1)
    return math.fsum((weights * valid).tolist())


def spread(batch: Batch, mask: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """``weight * mask`` of each item or position, on the device; None where every item counts alike."""
    own = None if batch.weights is None else batch.weights.to(device, dtype, non_blocking=True)
    if mask is None:
        return own
    valid = mask.to(device, dtype, non_blocking=True)
    return valid if own is None else valid * own.view(-1, *[1] * (valid.ndim - 1))


def check_alike(label: str, batch: Batch) -> None:
    """Refuse weights for a loss of scope ``"batch"``, which has no value of an item to weigh, unless they are alike.

    Raises:
        LossError: two weights that are not 0 differ.
    """
    if batch.weights is None:
        return
    kept = batch.weights[batch.weights != 0]
    if len(kept) and not bool((kept == kept[0]).all()):
        raise LossError(
            f"it compares the items of a batch with each other (scope 'batch'), so it cannot weigh them one by one; "
            f"expected weights that are all equal or 0, got {float(kept.min())} to {float(kept.max())}. Use weights of "
            "0 and 1, or train this loss without weights",
            label,
        )
