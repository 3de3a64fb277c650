"""Checks of what a loss gives the first time: values per item, that are not reduced and fit the items that count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss, Weight
from kdengine.api.batch import describe
from kdengine.api.errors import nearest
from kdengine.api.loss import TEACHER, refuse_broadcast


@contextmanager
def recorded_values(loss: Loss) -> Iterator[dict[str, Any]]:
    """Keep what ``per_item`` or ``value`` returns in here, under ``"given"``; a fused loss may call neither."""
    method = "per_item" if loss.scope == "item" else "value"
    before = loss.__dict__.get(method)
    call = getattr(loss, method)
    kept: dict[str, Any] = {}

    def record(batch: Batch) -> Any:
        kept["given"] = call(batch)
        return kept["given"]

    loss.__dict__[method] = record
    try:
        yield kept
    finally:
        if before is None:
            del loss.__dict__[method]
        else:
            loss.__dict__[method] = before


def check_valid(loss: Loss, valid: Any, batch: Batch) -> None:
    """Check what a loss says of the items that count.

    Raises:
        ConfigurationError: it names terms that it does not have, or gives a mask that is not of the batch's items.
    """
    method = f"{type(loss).__name__}.valid"
    named = valid if isinstance(valid, Mapping) else dict.fromkeys(loss.terms, valid)
    for term, mask in named.items():
        if term not in loss.terms:
            raise ConfigurationError(f"{method} has a mask for {term!r}, which is no term; {nearest(term, loss.terms)}")
        if mask is not None and not (isinstance(mask, Tensor) and mask.shape[:1] == (batch.size,)):
            raise ConfigurationError(
                f"{method} returned {describe(mask)} for a batch of {batch.size} items; expected None, or a bool "
                f"tensor ({batch.size}, ...)"
            )


def check_values(loss: Loss, batch: Batch, weights: Mapping[str, Weight], given: Any) -> Mapping[str, Tensor]:
    """Check what a loss returned for a batch.

    Args:
        loss: that returned it.
        batch: as the loss saw it.
        weights: per term, as they were passed to ``weighted_sum``.
        given: what ``per_item``, or ``value`` for scope ``"batch"``, returned.

    Returns:
        the values of each term.

    Raises:
        ConfigurationError: terms are missing, or the engine's reduction of the values would not be what is promised.
    """
    method = f"{type(loss).__name__}.{'per_item' if loss.scope == 'item' else 'value'}"
    named = {loss.terms[0]: given} if isinstance(given, Tensor) else given
    if not isinstance(named, Mapping) or not all(isinstance(value, Tensor) for value in named.values()):
        raise ConfigurationError(f"{method} returned {describe(given)}, expected a tensor or a mapping of tensors")
    if missing := [term for term in loss.terms if term not in named]:
        raise ConfigurationError(
            f"{method} returned the terms {list(named)}, but terms = {loss.terms} declares {', '.join(missing)} too"
        )
    for term in loss.terms:
        what = method if len(loss.terms) == 1 else f"{method}, term {term!r},"
        if loss.scope == "batch":
            _check_scalar(what, named[term])
        else:
            _check_rows(what, named[term], batch, weights[term])
            _check_broadcast(loss, named[term], batch)
    return named


def _check_scalar(what: str, value: Tensor) -> None:
    if value.ndim:
        raise ConfigurationError(
            f"{what} returned {describe(value)}; a loss of scope 'batch' returns one number, a 0-dim tensor"
        )


def _check_rows(what: str, value: Tensor, batch: Batch, weight: Weight) -> None:
    counted = tuple(weight.shape) if isinstance(weight, Tensor) and weight.ndim else (batch.size,)
    if tuple(value.shape[: len(counted)]) == counted:
        return
    if value.ndim == 0 or value.shape[0] != batch.size:
        raise ConfigurationError(
            f"{what} returned {describe(value)} for a batch of {batch.size} items; expected a value for each item, "
            f"({batch.size}, ...). The engine alone reduces, so leave mean() out, or write reduction='none'"
        )
    raise ConfigurationError(
        f"{what} returned {describe(value)}, but its items are counted by a mask {counted}; expected values of the "
        f"shape {counted} or {(*counted, '...')}, or a valid(batch) that returns one mask per item, ({batch.size},)"
    )


def _check_broadcast(loss: Loss, value: Tensor, batch: Batch) -> None:
    """Refuse values of every output against every target; only where the loss declares that it reads both."""
    if not loss.needs.logits:
        return
    student = batch.student.logits.shape
    if loss.needs.labels and isinstance(batch.labels, Tensor):
        refuse_broadcast(value.shape, student, batch.labels.shape, "the labels")
    if loss.needs.teacher:
        refuse_broadcast(value.shape, student, batch.teacher.logits.shape, TEACHER)
