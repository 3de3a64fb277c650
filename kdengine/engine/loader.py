"""Data order: which samples a batch holds, and what its transforms draw, as a pure function of (seed, epoch, index)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from kdengine.api import ConfigurationError
from kdengine.engine import random

Key = tuple[int, int]
"""(epoch, index): what a sampler yields."""

Share = tuple[int, int]
"""(rank, world): which part of every batch a process takes."""

WHOLE: Share = (0, 1)


@dataclass(frozen=True, slots=True)
class Indexed:
    """Collated data and the positions of its items in the data set.

    Attributes:
        data: what the collate function made.
        index: positions in the data set.
        counts: whether the items count; not those of a process that has no item of a small batch, and gets one to
            keep it busy.
    """

    data: Any
    index: Tensor
    counts: bool = True


class SeededDataset(Dataset[Any]):
    """Serves samples by (epoch, index), each drawn under a random state of its own.

    A data set without randomness (``random = False``, and no ``transform`` or one with ``random = False``) is not
    seeded at all, and one that holds ``tensors`` and has no transform is indexed in one call.
    """

    def __init__(self, dataset: Any, seed: int, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.seed = seed
        self.collate = collate
        transform = getattr(dataset, "transform", None)
        self.plain = not getattr(dataset, "random", True) and not getattr(transform, "random", transform is not None)
        self.tensors: tuple[Tensor, ...] | None = getattr(dataset, "tensors", None) if transform is None else None

    @property
    def varies(self) -> bool:
        """Whether a sample may be another one in another epoch."""
        return not self.plain and self.tensors is None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> Indexed:
        """A whole collated batch; the random state of the process is left as it was found."""
        index = torch.tensor([position for _, position in keys])
        if self.tensors is not None:
            return Indexed(tuple(tensor[index] for tensor in self.tensors), index)
        if self.plain:
            return Indexed(self.collate([self.dataset[position] for _, position in keys]), index)
        with random.preserved():
            return Indexed(self.collate([self._sample(epoch, position) for epoch, position in keys]), index)

    def _sample(self, epoch: int, position: int) -> Any:
        random.seed_host(self.seed, "sample", epoch, position)
        return self.dataset[position]


def bounds(items: int, share: Share) -> tuple[int, int]:
    """The first item of a share of a batch, and the first after it.

    >>> [bounds(7, (rank, 3)) for rank in range(3)]
    [(0, 2), (2, 4), (4, 7)]
    """
    rank, world = share
    return items * rank // world, items * (rank + 1) // world


class EpochBatches:
    """Batch sampler: lists of (epoch, index), in an order that depends on (seed, epoch) only.

    Several processes split every batch: what all of them yield together is what one would yield.
    """

    def __init__(self, items: int, batch_size: int, *, seed: int, shuffle: bool, drop_last: bool) -> None:
        self.items = items
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0
        self.share = WHOLE

    def __len__(self) -> int:
        full, rest = divmod(self.items, self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[list[Key]]:
        order: Sequence[int] = range(self.items)
        if self.shuffle:
            order = torch.randperm(self.items, generator=random.generator(self.seed, "order", self.epoch)).tolist()
        for batch in range(self.start, len(self)):
            begin = batch * self.batch_size
            first, last = bounds(self.size(batch), self.share)
            chosen = order[begin + first : begin + max(last, first + 1)]  # an item to keep busy where there is none
            yield [(self.epoch, position) for position in chosen]

    def size(self, batch: int) -> int:
        """Items of a batch over all processes."""
        return min(self.batch_size, self.items - batch * self.batch_size)


class Loader:
    """A data loader whose batches do not depend on workers, on resume or on what else draws random numbers.

    Iterating over it gives ``(input, labels, index)`` for a data set of tuples, and what the collate function
    returns for any other. Every full iteration moves on to the next epoch; :meth:`batches` asks for any epoch,
    from any batch on, without reading the ones before.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] = default_collate,
        pin_memory: bool | None = None,
    ) -> None:
        check_dataset(dataset, batch_size, drop_last)
        self.dataset = dataset
        self.epoch = 0
        self.order = EpochBatches(len(dataset), batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last)
        self._samples = SeededDataset(dataset, seed, collate)
        self._loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=self.order,
            collate_fn=_as_is,
            worker_init_fn=_leave_to_parent,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            generator=torch.Generator(),  # else making an iterator would draw from the student's generator
        )

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0, share: Share = WHOLE) -> Iterator[Indexed]:
        """The batches of one epoch from batch ``start`` on, or a share of each."""
        self.order.epoch, self.order.start, self.order.share = epoch, start, share
        return iter(self._loader) if share == WHOLE else self._shares(iter(self._loader), start, share)

    def _shares(self, stream: Iterator[Indexed], start: int, share: Share) -> Iterator[Indexed]:
        for batch, item in enumerate(stream, start):
            first, last = bounds(self.order.size(batch), share)
            yield replace(item, counts=first < last)

    def draw(self, epoch: int) -> tuple[int, int] | None:
        """What the inputs of an epoch depend on beside the index: (seed, epoch), or nothing where they never change."""
        return (self.order.seed, epoch) if self._samples.varies else None

    def example(self) -> Indexed:
        """The first items of the data set as a batch, read in this process."""
        return self._samples.__getitems__([(0, position) for position in range(min(len(self._samples), 8))])

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for item in self.batches(epoch):
            yield (*item.data, item.index) if isinstance(item.data, tuple | list) else item.data


def loader(dataset: Any, batch_size: int, **options: Any) -> Loader:
    """Make a :class:`Loader`: the engine's data order, for anyone's own script.

    Args:
        dataset: map-style data set (``__len__``, ``__getitem__``).
        batch_size: items per batch.
        **options: ``seed=0``, ``shuffle=True``, ``drop_last=False``, ``workers=0``, ``collate``, ``pin_memory``.

    Raises:
        ConfigurationError: the data set is empty or has no length, or no batch would come out.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.arange(4.0), torch.arange(4))
        >>> sorted(torch.cat([index for _, _, index in loader(data, 3)]).tolist())
        [0, 1, 2, 3]
    """
    return Loader(dataset, batch_size, **options)


def check_dataset(dataset: Any, batch_size: int, drop_last: bool) -> None:
    """Refuse what would give no batch."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ConfigurationError(
            f"expected a map-style data set with __len__ and __getitem__, got {type(dataset).__name__}; "
            "give the engine a loader of your own for an iterable data set"
        )
    if batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1, got {batch_size}")
    if len(dataset) == 0:
        raise ConfigurationError(f"the data set {type(dataset).__name__} is empty")
    if drop_last and len(dataset) < batch_size:
        raise ConfigurationError(
            f"the data set has {len(dataset)} items, fewer than batch_size {batch_size}, and drop_last leaves no batch"
        )


def _leave_to_parent(_worker: int) -> None:
    """Ctrl-C reaches the workers too; what becomes of them is the main process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_is(batch: Any) -> Any:
    return batch
