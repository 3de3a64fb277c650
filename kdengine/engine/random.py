"""The one place that derives seeds and keeps, sets and restores random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import torch

_NUMPY_WORDS: Final = 624  # of the Mersenne Twister


def derive(*parts: int | str) -> int:
    """A 63-bit seed as a pure function of its parts.

    >>> derive(0, "order", 1) == derive(0, "order", 1) != derive(0, "order", 2)
    True
    """
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with :func:`derive`."""
    return torch.Generator().manual_seed(derive(*parts))


def seed_all(*parts: int | str) -> None:
    """Seed torch (every device), ``random`` and NumPy with :func:`derive`."""
    seed = derive(*parts)
    torch.manual_seed(seed)
    _seed_python(seed)


def seed_host(*parts: int | str) -> None:
    """Seed what a sample's transforms draw from: torch's CPU generator, ``random`` and NumPy."""
    seed = derive(*parts)
    torch.default_generator.manual_seed(seed)
    _seed_python(seed)


def _seed_python(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def capture() -> dict[str, Any]:
    """The random state of this process, as a tree that a checkpoint can hold."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": _cuda_states(),
        "python": random.getstate(),
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
    }


def _cuda_states() -> list[torch.Tensor]:
    started = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if started else []


def restore(state: dict[str, Any]) -> None:
    """Go back to what :func:`capture` gave; CUDA states are restored device by device where they exist."""
    torch.set_rng_state(state["torch"])
    for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda, device)
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    # NumPy takes any position for its own and reads there, far outside of the generator.
    if type(position) is not int or not 0 <= position <= _NUMPY_WORDS or tuple(keys.shape) != (_NUMPY_WORDS,):
        raise ValueError(f"expected the state of NumPy's generator, {_NUMPY_WORDS} words, at position {position!r}")
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the random state as it was found."""
    state = capture()
    try:
        yield
    finally:
        restore(state)
