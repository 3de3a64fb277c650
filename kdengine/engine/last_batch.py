"""An epoch's last batch of a single item, which batch normalization cannot take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from kdengine.api import ConfigurationError
from kdengine.api.errors import InputsError
from kdengine.api.inputs import ALONE
from kdengine.engine import random
from kdengine.engine.batching import place, split
from kdengine.engine.feed import Feed
from kdengine.engine.fit import Models
from kdengine.engine.forward import run_student
from kdengine.engine.loader import Loader
from kdengine.engine.loaders import known_batches
from kdengine.engine.precision import Precision
from kdengine.engine.runtime import Runtime


def check_last_batch(feed: Feed, models: Models, precision: Precision, runtime: Runtime) -> None:
    """Refuse before training what would fail at the end of the first epoch.

    Where the last batch is known to have one item and the student normalizes over the batch, one item is tried: a
    convolution's map has many values per channel even then.

    Raises:
        ConfigurationError: the student cannot take one item.
    """
    sizes = _sizes(feed.loader)
    if runtime.several or sizes is None or sizes[0] % sizes[1] != 1 or sizes[1] == 1:
        return
    if feed.steps_per_epoch * feed.accumulate <= sizes[0] // sizes[1]:  # the last batch is never read
        return
    if not any(isinstance(module, _BatchNorm) and module.training for module in models.student.modules()):
        return
    example = feed.example()
    try:
        one = split(example, [1, example.size - 1])[0] if example.size > 1 else example
        with _as_found(models.student):
            run_student(models, precision, place(one, runtime.device), features=False)
    except Exception as error:
        if isinstance(error, InputsError) and ALONE in str(error.__cause__):
            raise ConfigurationError(
                f"the last batch of an epoch has 1 item ({sizes[0]} items in batches of {sizes[1]}): {error}"
            ) from error.__cause__
        return  # whatever else is wrong says so itself when it happens


def _sizes(loader: Iterable[Any]) -> tuple[int, int] | None:
    """Items of the data set and of a batch, where a shorter last batch is known to come."""
    if isinstance(loader, Loader):
        return None if loader.order.drop_last else (loader.order.items, loader.order.batch_size)
    if isinstance(loader, DataLoader) and known_batches(loader) is not None and not loader.drop_last:
        return len(loader.sampler), loader.batch_size or 1  # type: ignore[arg-type]
    return None


@contextmanager
def _as_found(module: nn.Module) -> Iterator[None]:
    """Leave buffers and random state as they were; no gradient."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.no_grad(), random.preserved():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
