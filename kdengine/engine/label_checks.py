"""Checks of labels against the logits that they are for: form, range, and that they are no copy of the input.

They read values, so they run where outputs are checked, and again when a loss has raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Loss, Metric
from kdengine.api.batch import describe
from kdengine.api.labels import IGNORE_INDEX

FEWEST = 4
"""So many labelled positions must equal the input before it is no chance."""


def check_labels(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    """Check that labels are class ids, one for each row of logits, or probabilities.

    Args:
        loss: that reads them; its ``ignore_index`` may stand for an id.
        logits: ``(B, ..., V)``.
        labels: of any form.

    Raises:
        ConfigurationError: they are of another form, or out of range.
    """
    rows = tuple(logits.shape[:-1])
    if labels.is_floating_point() and labels.shape == logits.shape:
        return
    if labels.is_floating_point() or labels.dtype is torch.bool or labels.is_complex() or tuple(labels.shape) != rows:
        raise ConfigurationError(
            f"it needs labels as class ids {rows}, an integer for each row of the logits {tuple(logits.shape)}, or "
            f"as probabilities of the logits' shape, but the labels are {describe(labels)}{_remedy(logits, labels)}"
        )
    check_range(labels, logits.shape[-1], ignored(loss))


def ignored(reader: Loss | Metric) -> int:
    """The class id that a loss or a metric leaves out."""
    given = getattr(reader, "ignore_index", IGNORE_INDEX)
    return given if isinstance(given, int) else IGNORE_INDEX


def _remedy(logits: Tensor, labels: Tensor) -> str:
    rows = tuple(logits.shape[:-1])
    if tuple(labels.shape) == rows:
        return "; use labels.long()"
    if tuple(labels.shape) == (*rows, 1):
        whole = not labels.is_floating_point() and labels.dtype is not torch.bool
        return f"; use labels.squeeze(-1){'' if whole else '.long()'}"
    if not labels.is_floating_point() and labels.shape == logits.shape:
        return "; use labels.float() where they are probabilities, or the losses bce and mse with target='labels'"
    return ""


def check_range(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Check that class ids are from 0 to below ``classes``, or ``ignore_index``.

    >>> check_range(torch.tensor([1, 2, 3]), 3, -100)
    Traceback (most recent call last):
    kdengine.api.errors.ConfigurationError: the label 3 is out of range: ...
    """
    if labels.dtype is torch.bool or not labels.numel():
        return
    low, high = map(int, labels.aminmax())
    if low < 0 or high >= classes:  # else to select the labelled ones, which takes much longer, would find nothing
        low, high = map(int, torch.where(labels == ignore_index, 0, labels).aminmax())
    if low >= 0 and high < classes:
        return
    bad = low if low < 0 else high
    hint = f"; where {bad} marks an item without a label: ignore_index={bad}"
    if low >= 1 and high == classes:
        hint = "; do the labels count from 1?"
    raise ConfigurationError(
        f"the label {bad} is out of range: the logits have {classes} classes, so labels are from "
        f"0 to {classes - 1}, or {ignore_index} for an item without a label{hint}"
    )


def refuse_copies(batch: Batch) -> None:
    """Refuse labels of a sequence that repeat the model's own input tokens: a causal model would learn to copy.

    Raises:
        ConfigurationError: they are equal at every labelled position.
    """
    labels = batch.labels
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim < 2:
        return
    if batch.student.logits.shape[:-1] != labels.shape or not any(
        repeats(labels, tokens) for tokens in own_tokens(batch.inputs)
    ):
        return
    raise ConfigurationError(
        f"the labels {tuple(labels.shape)} are the model's own input tokens, so that it would learn to repeat them: "
        "labels[:, t] must be what logits[:, t] predicts. For a model that predicts the next token, shift them: "
        "Engine(labels=kdengine.next_token). Where the input itself is meant: Engine(labels=lambda labels: labels)"
    )


def repeats(labels: Tensor, tokens: Tensor) -> bool:
    """Whether labels are tokens of an input at every labelled position, more often than by chance.

    >>> repeats(torch.tensor([[1, 2, 3, -100, 0]]), torch.tensor([[1, 2, 3, 0, 0]]))
    True
    """
    if labels.shape != tokens.shape:
        return False
    counted = labels != IGNORE_INDEX
    if int(counted.sum()) < FEWEST or bool((labels != tokens)[counted].any()):
        return False
    return len(set(labels[counted].tolist())) > 2  # a mask and the types of segments are integers too


def own_tokens(inputs: Any) -> list[Tensor]:
    """The inputs that may be tokens whose successors a model predicts: of a decoder its own, else every integer one."""
    if isinstance(inputs, Mapping):
        decoded = inputs.get("decoder_input_ids")
        values = list(inputs.values()) if decoded is None else [decoded]
    else:
        values = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    return [v for v in values if isinstance(v, Tensor) and not (v.is_floating_point() or v.dtype is torch.bool)]
