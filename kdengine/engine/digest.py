"""A digest of the items of a step, the same however they are split into micro-batches and over processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdengine.api import Batch
from kdengine.api.structure import tensors

MODULUS = 2**48
"""Digests are below this, so that 64 bits hold the sum of any number of them that will ever be added."""
HALF = 2**24
"""What a digest is divided by to make two numbers that float64 adds exactly."""
SAMPLED = 32
"""Bytes of each item's tensor that are looked at, evenly spread: enough to tell another crop, cheap at every step."""

_WEIGHTS = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, 4 * SAMPLED, dtype=np.uint64) | np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT, _TOP = np.uint64(29), np.uint64(16)


def digest(batch: Batch) -> int:
    """A 48-bit digest of a batch's items: their positions in the data set, labels and a sample of their inputs.

    Each item gives ``h = sum_j w_j b_j`` over its bytes modulo 2**64, mixed by ``(h ^ h >> 29) * c``; the upper bits of
    the items that count are added. The digest of several batches is the sum of theirs.

    >>> parts = [Batch(torch.arange(4.0)[:, None][part]) for part in (slice(0, 1), slice(1, 4))]
    >>> (digest(parts[0]) + digest(parts[1])) % MODULUS == digest(Batch(torch.arange(4.0)[:, None]))
    True
    """
    items = np.zeros(batch.size, dtype=np.uint64)
    for place, tensor in enumerate(_tensors(batch)):
        shown = _bytes(tensor)
        items = items * _MIX + shown @ _weights(place, shown.shape[1])
    items = (items ^ (items >> _SHIFT)) * _MIX
    if batch.mask is not None:
        items = items[batch.mask.numpy()]
    return int((items >> _TOP).sum(dtype=np.uint64)) % MODULUS


@cache
def _weights(place: int, width: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Odd factors of a sample's bytes, others for every tensor of a batch."""
    return np.roll(_WEIGHTS, place)[:width]


def _tensors(batch: Batch) -> Iterator[Tensor]:
    """What the batch holds on the host, with a row per item."""
    for part in tensors((batch.index, batch.labels, batch.weights, batch.inputs)):
        if (
            part.layout == torch.strided
            and part.device.type == "cpu"
            and part.shape[:1] == (batch.size,)
            and part.numel()
        ):
            yield part


def _bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A sample of each row's bytes, ``(B, at most SAMPLED)``; an odd step meets all bytes of a number."""
    rows = tensor.detach().contiguous().view(torch.uint8).numpy().reshape(len(tensor), -1)
    step = -(-rows.shape[1] // SAMPLED) | 1
    return rows[:, ::step]
