"""What can be known of a loader that somebody else has made, without reading it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset
from torch.utils.data.sampler import BatchSampler, RandomSampler, SequentialSampler

from kdengine.api import Batch, ConfigurationError
from kdengine.api.batch import describe
from kdengine.engine.loader import Loader


def check_loader(loader: Any) -> None:
    """Refuse what is no loader of batches.

    Raises:
        ConfigurationError: it cannot be iterated over, or it is one batch.
    """
    if isinstance(loader, Mapping | Batch):
        raise ConfigurationError(
            f"expected a loader, an iterable of batches, got {describe(loader)}: one batch goes into a list, [batch]"
        )
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise ConfigurationError(f"expected a loader, an iterable of batches, got {describe(loader)}")


def known_batches(loader: Iterable[Any]) -> int | None:
    """How many batches a loader gives in an epoch, where that is certain; None where its length is what it says."""
    if isinstance(loader, Loader | list | tuple):
        return len(loader)
    return len(loader) if isinstance(loader, DataLoader) and _sampler(loader) is not None else None


def _sampler(loader: DataLoader[Any]) -> Any:
    """The sampler of a DataLoader, where it and its batch sampler are PyTorch's usual ones."""
    usual = type(loader.sampler) in (SequentialSampler, RandomSampler) and type(loader.batch_sampler) is BatchSampler
    return loader.sampler if usual else None


def repeats(loader: Iterable[Any]) -> bool:
    """Whether a batch may hold one item of the data set twice, as far as is known."""
    if isinstance(loader, Loader):
        return False
    sampler = _sampler(loader) if isinstance(loader, DataLoader) else None
    return sampler is None or bool(getattr(sampler, "replacement", False))


def check_index(batch: Batch, loader: Iterable[Any]) -> None:
    """Refuse an index that cannot be that of the loader's items.

    Raises:
        ConfigurationError: it names items that the data set does not have, or different items alike.
    """
    if batch.index is None or not batch.size:
        return
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    items = len(dataset) if isinstance(dataset, Sized) else None
    if items is not None and int(batch.index.max()) >= items:
        wrong = f"it goes up to {int(batch.index.max())}, and the data set has {items} items"
    elif not repeats(loader) and torch.unique(batch.index).numel() < batch.size:
        wrong = "different items have the same"
    else:
        return
    raise ConfigurationError(
        f"the index of a batch is to be the position of each item in the data set, but {wrong}. If the third part of "
        "the loader's items is something else, say so by Engine(batch=lambda item: kdengine.Batch(item[0], item[1])), "
        "with weights=item[2] for sample weights, or index=item[2] where it is meant"
    )


def restarted(loader: Iterable[Any], opened: Iterator[Any] | None) -> tuple[Iterator[Any], bool]:
    """Open a loader, and tell whether that began it anew.

    Args:
        loader: any iterable.
        opened: the iterator that opening it gave before.

    Returns:
        the iterator, and False where it is the one from before and goes on where that stood: the loader is an
        iterator, or returns one that it keeps, and nothing about it changed.
    """
    before = [(thing, dict(getattr(thing, "__dict__", {}))) for thing in (loader, opened)]
    stream = iter(loader)
    if opened is None or stream is not opened:
        return stream, True
    return stream, any(_changed(vars(thing), kept) for thing, kept in before if hasattr(thing, "__dict__"))


def _changed(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return now.keys() != before.keys() or any(now[name] is not value for name, value in before.items())


def reads_once(loader: Iterable[Any]) -> bool:
    """Whether a loader is an iterator that cannot begin anew: a generator, ``zip``, ``map`` and their like."""
    own = getattr(type(loader), "__iter__", None)
    return isinstance(loader, Iterator) and not hasattr(own, "__code__")


def repeats_in_workers(loader: Any) -> bool:
    """Whether several workers read a stream, each of them all of it unless the stream sees to that itself."""
    return (
        isinstance(loader, DataLoader)
        and isinstance(getattr(loader, "dataset", None), IterableDataset)
        and loader.num_workers > 1
    )
