"""From what a loader yields to a :class:`Batch`, and from what a model returns to an :class:`Output`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from kdengine.engine.loader import Indexed, Share, WithIndex, bounds

LABEL_KEYS = ("labels", "label", "targets")
_SEQUENCES = (tuple, list)
_PER_ITEM = ("inputs", "labels", "index", "mask", "weights")


class Reader:
    """Reads a loader's item as a batch.

    Known are (input, labels[, index]), a mapping of keyword inputs with the labels under one of ``LABEL_KEYS``, a bare
    tensor and a :class:`Batch`. The index that :func:`kdengine.loader` knows goes to the batch beside them.

    Args:
        own: the user's function, ``fn(item)``: it gets just what the collate function, or a loader of the user's, made.
        labels: makes of a batch's labels those that every loss and metric reads.
        structured: whether labels may be any structure of tensors, since losses are told how to read theirs.
    """

    def __init__(
        self,
        own: Callable[[Any], Batch] | None = None,
        labels: Callable[[Any], Tensor] | None = None,
        *,
        structured: bool = False,
    ) -> None:
        self.own = own
        self.labels = labels
        self.structured = structured

    def __call__(self, item: Any) -> Batch:
        """The batch.

        Raises:
            ConfigurationError: the item is of no known form; the message lists what was seen.
        """
        data, index, counts = item, None, True
        if isinstance(item, Indexed):
            data, index, counts = item.data, item.index, item.counts
        elif isinstance(item, WithIndex):
            data, index = item.data, item.positions
        batch = _read(data, index, self.structured) if self.own is None else self._by_function(self.own, data)
        if self.labels is not None and batch.labels is not None:
            batch = batch.replace(labels=self.labels(batch.labels))
        if index is not None and batch.index is None and len(index) == batch.size:
            batch = batch.replace(index=index)
        return batch if counts else uncounted(batch)

    def _by_function(self, own: Callable[[Any], Batch], data: Any) -> Batch:
        batch = own(data)
        if not isinstance(batch, Batch):
            raise ConfigurationError(
                f"Engine(batch=fn): fn returned {describe(batch)}; expected a kdengine.Batch, such as "
                "kdengine.Batch(inputs, labels)"
            )
        return batch


to_batch = Reader()
"""Reads the forms that are known."""


def _read(data: Any, index: Tensor | None, structured: bool) -> Batch:
    """A batch of an item of a known form."""
    if isinstance(data, _SEQUENCES) and 1 <= len(data) <= 3:
        inputs, labels, given = (*data, None, None)[:3]
        batch = Batch(inputs, _as_labels(labels, structured))
        return batch if given is None else batch.replace(index=_as_index(given, batch.size, index))
    if isinstance(data, Batch):
        return data
    if isinstance(data, Tensor):
        return Batch(data)
    if isinstance(data, Mapping):
        return _from_mapping(data, structured)
    raise ConfigurationError(
        f"the loader yielded {describe(data)}; expected (input, labels[, index]), a mapping of keyword inputs with "
        f"one of {LABEL_KEYS}, or a tensor. Pass Engine(batch=fn), where fn(item) returns a kdengine.Batch, for "
        "instance lambda item: kdengine.Batch(item[0], item[1])"
    )


def _from_mapping(data: Mapping[str, Any], structured: bool) -> Batch:
    key = next((key for key in LABEL_KEYS if key in data), None)
    inputs = {name: value for name, value in data.items() if name != key}
    if not inputs:
        raise ConfigurationError(f"the loader yielded {describe(data)}: no inputs beside the labels")
    return Batch(inputs, None if key is None else _as_labels(data[key], structured))


def _as_labels(labels: Any, structured: bool) -> Any:
    if labels is None or structured or (isinstance(labels, Tensor) and labels.ndim):
        return labels
    if isinstance(labels, Tensor | int | float | str):
        raise ConfigurationError(
            f"expected the labels of a batch, a tensor (B, ...), got {describe(labels)}: the loader seems to give "
            "items rather than batches; make batches of a data set by kdengine.loader(dataset, batch_size)"
        )
    if hasattr(labels, "__array__"):
        raise ConfigurationError(
            f"expected labels as a tensor, got {describe(labels)}: make tensors of arrays, by torch.as_tensor in the "
            "collate function or in Engine(batch=lambda item: kdengine.Batch(*map(torch.as_tensor, item)))"
        )
    raise ConfigurationError(
        f"expected labels as a tensor, got {describe(labels)}; say how losses read theirs by "
        "Engine(labels={'ce': lambda labels: labels[...]}), or pass Engine(batch=fn)"
    )


def _as_index(given: Any, size: int, known: Tensor | None) -> Tensor:
    """The third part of an item as the items' index.

    Args:
        given: the third part.
        size: number of items.
        known: the index that the loader itself knows, or None.

    Raises:
        ConfigurationError: it is no index: of another type or shape, negative, or the same for items that differ.
    """
    if not isinstance(given, Tensor) or given.dtype != torch.int64 or given.shape != (size,):
        wrong = f"expected int64 ({size},)"
    elif size and int(given.min()) < 0:
        wrong = f"an index is not negative, got {int(given.min())}"
    elif known is not None and torch.unique(given).numel() < torch.unique(known).numel():
        wrong = "different items have the same value"
    else:
        return given
    raise ConfigurationError(
        f"an item has a third part, {describe(given)}, which is read as the positions of the items in the data "
        f"set, but is none: {wrong}. Say what it is: sample weights by "
        "Engine(batch=lambda item: kdengine.Batch(item[0], item[1], weights=item[2])); leave out what no loss needs by "
        "Engine(batch=lambda item: kdengine.Batch(item[0], item[1])), with index=item[2] where it is meant"
    )


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


def check_transformed(transform: object, made: Any, before: Batch) -> Batch:
    """Refuse what a batch transform may not return.

    Raises:
        ConfigurationError: it is no batch, one of another size, or one that has lost the items' weights.
    """
    name = type(transform).__name__
    if not isinstance(made, Batch):
        raise ConfigurationError(
            f"the batch transform {name} returned {describe(made)}; expected a kdengine.Batch, for instance "
            "batch.replace(inputs=...)"
        )
    if made.size != before.size:
        raise ConfigurationError(
            f"the batch transform {name} returned a batch of {made.size} items in place of {before.size}; expected as "
            "many"
        )
    if before.weights is not None and made.weights is None:
        raise ConfigurationError(
            f"the batch transform {name} returned a batch without the weights that its items had: make it with "
            "batch.replace(inputs=...), which keeps everything else, or give weights of 1"
        )
    return made


def split(batch: Batch, sizes: list[int]) -> list[Batch]:
    """Undo :func:`concatenate`."""
    if len(sizes) == 1:
        return [batch]
    return [_part(batch, first, last) for first, last in positions(sizes)]


def _part(batch: Batch, first: int, last: int) -> Batch:
    """Some items of a batch, before the models have run."""
    parts = {name: slice_items(getattr(batch, name), first, last, batch.size, name) for name in _PER_ITEM}
    return batch.without_outputs().replace(**parts, size=last - first)
