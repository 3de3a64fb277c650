"""From what a loader yields to a :class:`Batch`, and from what a model returns to an :class:`Output`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdengine.api.batch import Batch, describe, first_tensor
from kdengine.api.errors import ConfigurationError
from kdengine.api.models import call_model as call_model
from kdengine.api.models import find_logits as find_logits
from kdengine.api.structure import cast as cast
from kdengine.api.structure import join_items, positions, slice_items
from kdengine.api.structure import move as move
from kdengine.engine.loader import Indexed, Share, bounds

LABEL_KEYS = ("labels", "label", "targets")
_SEQUENCES = (tuple, list)
_PER_ITEM = ("inputs", "labels", "index", "mask", "weights")


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


def device_of(inputs: Any) -> torch.device:
    """Where a batch's inputs are."""
    tensor = first_tensor(inputs)
    return torch.device("cpu") if tensor is None else tensor.device


def place(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``; the same object when the device is the CPU. The index stays on the host."""
    if device.type == "cpu":
        return batch
    moved = {name: move(getattr(batch, name), device) for name in ("inputs", "labels", "mask", "weights")}
    return batch.replace(**moved, host=batch)


def concatenate(window: list[Batch]) -> Batch:
    """The micro-batches of one optimizer step as one batch, for batch transforms.

    Raises:
        ConfigurationError: inputs or labels cannot be joined; it names the part.
    """
    if len(window) == 1:
        return window[0]
    sizes = [batch.size for batch in window]
    indices = [batch.index for batch in window if batch.index is not None]
    return (
        window[0]
        .without_outputs()
        .replace(
            inputs=join_items([batch.inputs for batch in window], sizes),
            labels=join_items([batch.labels for batch in window], sizes, "labels"),
            index=torch.cat(indices) if len(indices) == len(window) else None,
            mask=_join_or_ones([batch.mask for batch in window], sizes),
            weights=_join_or_ones([batch.weights for batch in window], sizes),
            size=sum(sizes),
        )
    )


def _join_or_ones(parts: list[Tensor | None], sizes: list[int]) -> Tensor | None:
    """Masks or weights of all micro-batches; where one has none, every item counts, and counts 1."""
    given = next((part for part in parts if part is not None), None)
    if given is None:
        return None
    return torch.cat([given.new_ones(size) if part is None else part for part, size in zip(parts, sizes, strict=True)])


def uncounted(batch: Batch) -> Batch:
    """The batch with no item that counts: it keeps a process in step with others that have more items."""
    return batch.without_outputs().replace(mask=torch.zeros(batch.size, dtype=torch.bool))


def take(batch: Batch, share: Share) -> Batch:
    """A process's share of a batch; an uncounted item where it has none."""
    first, last = bounds(batch.size, share)
    return _part(batch, first, last) if first < last else uncounted(_part(batch, 0, 1))


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    """Undo :func:`concatenate`."""
    if len(sizes) == 1:
        return [batch]
    return [_part(batch, first, last) for first, last in positions(sizes)]


def _part(batch: Batch, first: int, last: int) -> Batch:
    """Some items of a batch, before the models have run."""
    parts = {name: slice_items(getattr(batch, name), first, last, batch.size, name) for name in _PER_ITEM}
    return batch.without_outputs().replace(**parts, size=last - first)
