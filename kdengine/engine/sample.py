"""The batch on which gradient shares are measured, in the checkpoint of a fit that has only its evaluation left."""

from __future__ import annotations

from typing import Any

from kdengine.api import Batch
from kdengine.engine import codec
from kdengine.engine.fit import Fit

FIELDS = ("inputs", "labels", "index", "mask", "weights", "size")


def collect(fit: Fit) -> dict[str, Any] | None:
    """The epoch's last micro-batch where no further step of the epoch will bring one; None in any other checkpoint.

    It is the batch as the ``batch`` hook left it, which cannot be asked again: it may have a state.
    """
    batch, feed = fit.sample, fit.feed
    at_end = -(-fit.position.batch // feed.accumulate) >= feed.steps_per_epoch
    if batch is None or not (fit.settings.gradient_shares and at_end):
        return None
    stored = {field: getattr(batch, field) for field in FIELDS}
    try:
        codec.encode(stored)
    except codec.UnsupportedState:  # inputs of a type of the user's
        return None
    return {**stored, "epoch": batch.epoch}


def restore(stored: dict[str, Any] | None) -> Batch | None:
    """The batch that :func:`collect` gave."""
    if stored is None:
        return None
    batch = Batch(**{field: stored[field] for field in FIELDS})
    batch.epoch = stored["epoch"]
    return batch
