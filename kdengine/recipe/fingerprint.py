"""The content of a data set in a short hash: what a trained teacher depends on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdengine.engine import random

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

TRIED = 4
"""Items that are drawn twice, to see whether they have a content that stays."""
READ_WHOLE = 10_000
"""Items up to which a data set that has no fingerprint of its own is read whole."""


def fingerprint(dataset: Any) -> str:
    """What identifies the content of a data set.

    Its own ``fingerprint()`` where it has one. Else a hash of every target, and of every item (as the training reads
    it, with its random draws seeded) up to `READ_WHOLE` items; of a larger data set, as many that are spread evenly.
    That costs what it costs to read so many items once: an image from a file takes about a millisecond. A large data
    set of which single items may change should offer ``fingerprint()``.

    Items that a generator of the data set's own makes anew at each draw have no content that would stay: of such a
    data set the targets alone are read, else its teacher would never be found again.
    """
    own = getattr(dataset, "fingerprint", None)
    if callable(own):
        return str(own())
    state = hashlib.sha256(f"{type(dataset).__qualname__} of {len(dataset)}".encode())
    _add(state, list(getattr(dataset, "targets", ())))
    step = -(-len(dataset) // READ_WHOLE)
    with random.preserved():
        if all(_drawn(dataset, position) == _drawn(dataset, position) for position in range(min(TRIED, len(dataset)))):
            for position in range(0, len(dataset), step):
                _draw(state, dataset, position)
    return state.hexdigest()[:32]


def _draw(state: Any, dataset: Any, position: int) -> None:
    random.seed_host(0, "fingerprint", position)
    _add(state, dataset[position])


def _drawn(dataset: Any, position: int) -> str:
    """The hash of one draw of an item."""
    state = hashlib.sha256()
    _draw(state, dataset, position)
    return str(state.hexdigest())


def _add(state: Any, value: Any) -> None:
    """Feed a value to a hash, with its kind and its length."""
    if isinstance(value, Mapping):
        value = [part for key in sorted(value, key=str) for part in (str(key), value[key])]
    if isinstance(value, tuple | list):
        state.update(f"{len(value)} of".encode())
        for part in value:
            _add(state, part)
        return
    if isinstance(value, Tensor):
        value = value.detach().to("cpu").contiguous()
        content = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        kind = f"{value.dtype} {tuple(value.shape)}"
    elif callable(getattr(value, "tobytes", None)):  # arrays and images
        content, kind = value.tobytes(), f"{type(value).__qualname__} {getattr(value, 'shape', None)}"
    else:
        content, kind = _ADDRESS.sub("", repr(value)).encode(), type(value).__qualname__
    state.update(f"{kind} {len(content)} ".encode())
    state.update(content)
