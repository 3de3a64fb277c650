"""Whether padding counts: a mean over items in which positions of a sequence take part that nobody has labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from kdengine.api import Batch, Loss
from kdengine.engine.label_checks import ignored
from kdengine.engine.notices import Notices


def warn_of_padded_logits(label: str, loss: Loss, batch: Batch, notices: Notices) -> None:
    """Warn where a loss of classes compares whole sequences with the teacher's, padding included.

    A loss that divides by the labelled positions, or is given positions as items, has nothing to fear.

    Args:
        label: of the loss.
        loss: that declares classes; another one is looked at by :func:`warn_of_padded_values`.
        batch: as the loss sees it, with outputs.
        notices: of the engine.
    """
    positions = tuple(batch.student.logits.shape[:-1])  # (B, T)
    if not loss.needs.teacher or loss.needs.classes is None or len(positions) != 2:
        return
    mark = marked(batch, positions, ignored(loss))
    if mark is None or all(mask is not None and mask.ndim > 1 for mask in masks_of(loss, batch)):
        return
    notices.once(
        f"losses.{label}: it is a mean over items, in which all {positions[1]} positions of each sequence count, also "
        f"those that {mark}. To leave them out, make every position an item, by Engine(batch=..., output=...): see "
        "'Leave padding out' in docs/how-to.md"
    )


def warn_of_padded_values(
    label: str, loss: Loss, batch: Batch, values: Mapping[str, Tensor], masks: Mapping[str, bool], notices: Notices
) -> None:
    """Warn where a loss of one's own gives a value for each position, and its mask leaves out items alone.

    Args:
        label: of the loss.
        loss: that declares no classes.
        batch: as the loss saw it.
        values: of each term.
        masks: whether the mask of each term is one per position.
        notices: of the engine.
    """
    if loss.needs.classes is not None or not (loss.needs.labels or loss.needs.teacher):
        return
    for term, value in values.items():
        if value.ndim < 2 or masks[term] or (value.ndim > 2 and not loss.needs.labels):
            continue
        if (mark := marked(batch, tuple(value.shape), ignored(loss))) is not None:
            notices.once(
                f"losses.{label}: {type(loss).__name__}.per_item gives a value for each position "
                f"{tuple(value.shape[1:])}, which are averaged within each item, also those that {mark}. Let "
                "valid(batch) return a mask of that shape, or declare Needs(labels=True, classes='exclusive'), so that "
                "each position counts for itself"
            )


def marked(batch: Batch, positions: Sequence[int], ignore_index: int) -> str | None:
    """By what some positions are marked as padding, in words; None where none is."""
    labels = batch.labels
    if isinstance(labels, Tensor) and tuple(labels.shape) == positions and bool((labels == ignore_index).any()):
        return f"have the label {ignore_index}"
    mask = batch.inputs.get("attention_mask") if isinstance(batch.inputs, Mapping) else None
    if isinstance(mask, Tensor) and tuple(mask.shape) == positions and bool((mask == 0).any()):
        return "attention_mask leaves out"
    return None


def masks_of(loss: Loss, batch: Batch) -> list[Tensor | None]:
    """The mask of each term, as the loss itself gives it."""
    valid = loss.valid(batch)
    return [valid if valid is None or isinstance(valid, Tensor) else valid.get(term) for term in loss.terms]
