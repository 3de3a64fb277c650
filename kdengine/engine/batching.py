"""From what a loader yields to a :class:`Batch`, and from what a model returns to an :class:`Output`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kdengine.api.batch import Batch, describe, first_tensor
from kdengine.api.errors import ConfigurationError
from kdengine.api.models import call_model as call_model
from kdengine.api.models import find_logits as find_logits
from kdengine.engine.loader import Indexed, Share, bounds

LABEL_KEYS = ("labels", "label", "targets")
_SEQUENCES = (tuple, list)


def to_batch(data: Any) -> Batch:
    """Read a loader's item: (input, labels[, index]), a mapping of keyword inputs, or a bare tensor.

    Raises:
        ConfigurationError: the item is of no known form; the message lists what was seen.
    """
    index = None
    if isinstance(data, Indexed):
        if not data.counts:
            return uncounted(to_batch(Indexed(data.data, data.index)))
        data, index = data.data, data.index
    if isinstance(data, _SEQUENCES) and 1 <= len(data) <= 3:
        inputs, labels, given = (*data, None, None)[:3]
        return Batch(inputs, _as_labels(labels), index if given is None else given)
    if isinstance(data, Batch):
        return data
    if isinstance(data, Tensor):
        return Batch(data, index=index)
    if isinstance(data, Mapping):
        return _from_mapping(data, index)
    raise ConfigurationError(
        f"the loader yielded {describe(data)}; expected (input, labels[, index]), a mapping of keyword inputs with "
        f"one of {LABEL_KEYS}, or a tensor. Pass Engine(batch=fn), where fn(item) returns a kdengine.Batch"
    )


def _from_mapping(data: Mapping[str, Any], index: Tensor | None) -> Batch:
    key = next((key for key in LABEL_KEYS if key in data), None)
    inputs = {name: value for name, value in data.items() if name != key}
    if not inputs:
        raise ConfigurationError(f"the loader yielded {describe(data)}: no inputs beside the labels")
    return Batch(inputs, None if key is None else _as_labels(data[key]), index)


def _as_labels(labels: Any) -> Tensor | None:
    if labels is None or isinstance(labels, Tensor):
        return labels
    raise ConfigurationError(f"expected labels as a tensor, got {describe(labels)}; pass Engine(batch=fn)")


def move(value: Any, device: torch.device) -> Any:
    """Every tensor inside nested mappings and sequences on ``device``; the structure is kept."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(move(item, device) for item in value)
    return value


def device_of(inputs: Any) -> torch.device:
    """Where a batch's inputs are."""
    tensor = first_tensor(inputs)
    return torch.device("cpu") if tensor is None else tensor.device


def place(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``; the same object when the device is the CPU."""
    if device.type == "cpu":
        return batch
    inputs, labels, mask = (move(part, device) for part in (batch.inputs, batch.labels, batch.mask))
    placed = Batch(inputs, labels, batch.index, mask, size=batch.size)
    placed.epoch, placed.draw, placed.host = batch.epoch, batch.draw, batch
    return placed


def concatenate(window: list[Batch]) -> Batch:
    """The micro-batches of one optimizer step as one batch, for batch transforms."""
    if len(window) == 1:
        return window[0]
    return Batch(
        _cat([batch.inputs for batch in window]),
        _cat([batch.labels for batch in window]),
        _cat([batch.index for batch in window]),
        _cat([batch.mask for batch in window]),
    )


def uncounted(batch: Batch) -> Batch:
    """The batch with no item that counts: it keeps a process in step with others that have more items."""
    nothing = torch.zeros(batch.size, dtype=torch.bool)
    return Batch(batch.inputs, batch.labels, batch.index, nothing, size=batch.size)


def take(batch: Batch, share: Share) -> Batch:
    """A process's share of a batch; an uncounted item where it has none."""
    first, last = bounds(batch.size, share)
    part = _part(batch, first, last) if first < last else uncounted(_part(batch, 0, 1))
    part.epoch, part.draw = batch.epoch, batch.draw
    return part


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    """Undo :func:`concatenate`."""
    if len(sizes) == 1:
        return [batch]
    edges = [sum(sizes[:position]) for position in range(len(sizes) + 1)]
    return [_part(batch, first, last) for first, last in pairwise(edges)]


def _part(batch: Batch, first: int, last: int) -> Batch:
    return Batch(*(_slice(part, first, last) for part in (batch.inputs, batch.labels, batch.index, batch.mask)))


def _cat(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], Mapping):
        return {key: _cat([part[key] for part in parts]) for key in parts[0]}
    return None


def _slice(value: Any, first: int, last: int) -> Any:
    if isinstance(value, Tensor):
        return value[first:last]
    if isinstance(value, Mapping):
        return {key: _slice(item, first, last) for key, item in value.items()}
    return None
