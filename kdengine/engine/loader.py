"""Data order: which samples a batch holds, and what its transforms draw, as a pure function of (seed, epoch, index)."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from kdengine.api import Batch, ConfigurationError
from kdengine.engine import random
from kdengine.engine.collation import collated
from kdengine.engine.notices import Notices
from kdengine.engine.probe import draws_differ

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
        unsteady: whether two draws of one of the items under one seed differed.
    """

    data: Any
    index: Tensor
    counts: bool = True
    unsteady: bool = False


class WithIndex(tuple[Any, ...]):
    """The parts that a data set gives and, behind them, the items' index: what a loader yields in a loop of one's own.

    An engine that is given it tells the index from the parts, however many there are.

    What moves its tensors, as Lightning and Accelerate do, makes another one of the same type.
    """

    parts: Any = None

    @classmethod
    def of(cls, item: Indexed) -> WithIndex:
        """The parts and the index of a batch."""
        made = cls((*item.data, item.index))
        made.parts = item.data
        return made

    @property
    def data(self) -> Any:
        """The parts, as the collate function made them."""
        return tuple(self[:-1]) if self.parts is None else self.parts

    @property
    def positions(self) -> Tensor:
        """Positions of the items in the data set."""
        return cast("Tensor", self[-1])


class SeededDataset(Dataset[Any]):
    """Serves samples by (epoch, index), each drawn under a random state of its own.

    A data set without randomness (``random = False``, and no ``transform`` or one with ``random = False``) is not
    seeded at all, and one whose items are the rows of tensors (:func:`tensors_of`) is indexed in one call.
    """

    def __init__(self, dataset: Any, seed: int, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.seed = seed
        self.collate = collate
        self._probed = False

    @property
    def plain(self) -> bool:
        """Whether neither the data set nor its transform says that it draws."""
        transform = getattr(self.dataset, "transform", None)
        return not getattr(self.dataset, "random", True) and not getattr(transform, "random", transform is not None)

    @property
    def tensors(self) -> tuple[Tensor, ...] | None:
        """Tensors whose rows are what the collate function would make of the items, or None."""
        return tensors_of(self.dataset) if self.collate is default_collate else None

    @property
    def varies(self) -> bool:
        """Whether a sample may be another one in another epoch."""
        return not self.plain and self.tensors is None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> Indexed:
        """A whole collated batch; the random state of the process is left as it was found."""
        index = torch.tensor([position for _, position in keys])
        if (tensors := self.tensors) is not None:
            return Indexed(tuple(tensor[index] for tensor in tensors), index)
        unsteady = self._is_unsteady(*keys[0])
        with nullcontext() if self.plain else random.preserved():
            samples = [self.dataset[at] if self.plain else self._sample(epoch, at) for epoch, at in keys]
            batch = collated(self.collate, samples, index.tolist())
            return Indexed(batch, index, unsteady=unsteady)

    def _is_unsteady(self, epoch: int, position: int) -> bool:
        """Whether an item differs between two draws under one seed; looked at once in each process."""
        if self._probed:
            return False
        self._probed = True
        return draws_differ(self.dataset, lambda: self._sample(epoch, position))

    def _sample(self, epoch: int, position: int) -> Any:
        random.seed_host(self.seed, "sample", epoch, position)
        return self.dataset[position]


def tensors_of(dataset: Any) -> tuple[Tensor, ...] | None:
    """Tensors whose rows are a data set's items, so that a batch is taken in one call; None where there are none.

    A ``TensorDataset`` has them, unless a subclass makes its items in its own way, and a data set that says so by an
    attribute ``indexed_tensors`` while it has no transform.
    """
    if getattr(dataset, "transform", None) is not None:
        return None
    if getattr(type(dataset), "__getitem__", None) is TensorDataset.__getitem__:
        return tuple(dataset.tensors)
    found: tuple[Tensor, ...] | None = getattr(dataset, "indexed_tensors", None)
    return found


def name_of(dataset: Any) -> str:
    """What a message calls a data set: its class, and that of the one inside.

    >>> name_of(torch.utils.data.Subset([1, 2], [0]))
    'Subset of list'
    """
    name, inner = type(dataset).__name__, getattr(dataset, "dataset", None)
    return name if inner is None else f"{name} of {type(inner).__name__}"


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
        return self._from(self.epoch, self.start, self.share)  # read now: another iteration may begin before the first

    def _from(self, epoch: int, start: int, share: Share) -> Iterator[list[Key]]:
        order: Sequence[int] = range(self.items)
        if self.shuffle:
            order = torch.randperm(self.items, generator=random.generator(self.seed, "order", epoch)).tolist()
        for batch in range(start, len(self)):
            begin = batch * self.batch_size
            first, last = bounds(self.size(batch), share)
            chosen = order[begin + first : begin + max(last, first + 1)]  # an item to keep busy where there is none
            yield [(epoch, position) for position in chosen]

    def size(self, batch: int) -> int:
        """Items of a batch over all processes."""
        return min(self.batch_size, self.items - batch * self.batch_size)


class Loader:
    """A data loader whose batches do not depend on workers, on resume or on what else draws random numbers.

    Iterating over it gives ``(input, labels, index)`` for a data set of tuples (the index behind all the parts that
    the data set has), and what the collate function returns for any other. Every iteration moves on to the next epoch;
    :meth:`batches` asks for any epoch, from any batch on, without reading the ones before.
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
        self._workers = workers
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._loader = self._make(persistent=workers > 0)
        self._latest: weakref.ref[Any] | None = None
        self._notices = Notices()

    def __getstate__(self) -> dict[str, Any]:
        """What another process, or a copy, starts from: nobody reads from it yet."""
        return {**self.__dict__, "_latest": None}

    def _make(self, *, persistent: bool) -> DataLoader[Any]:
        return DataLoader(
            self._samples,
            batch_sampler=self.order,
            collate_fn=_as_is,
            worker_init_fn=_leave_to_parent,
            num_workers=self._workers,
            persistent_workers=persistent,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else making an iterator would draw from the student's generator
        )

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, epoch: int, start: int = 0, share: Share = WHOLE) -> Iterator[Indexed]:
        """The batches of one epoch from batch ``start`` on, or a share of each; several may be read by turns."""
        self.order.epoch, self.order.start, self.order.share = epoch, start, share
        loader = self._loader if self._workers == 0 or not self._is_open() else self._make(persistent=False)
        stream = self._serve(iter(loader), start, share)
        self._latest = weakref.ref(stream)
        return stream

    def _is_open(self) -> bool:
        """Whether somebody still reads from the workers: they serve one iteration at a time."""
        stream = None if self._latest is None else self._latest()
        return stream is not None and stream.gi_frame is not None

    def _serve(self, stream: Iterator[Indexed], start: int, share: Share) -> Generator[Indexed]:
        for batch, item in enumerate(stream, start):
            first, last = bounds(self.order.size(batch), share)
            yield self._noted(item if first < last else replace(item, counts=False))

    def _noted(self, item: Indexed) -> Indexed:
        """The item; a data set that cannot be seeded is named once."""
        if item.unsteady:
            self._notices.once(
                f"two draws of one item of the data set {name_of(self.dataset)} under one seed differ: it, or a "
                "transform, draws from a random generator of its own, which kdengine cannot seed. So batches depend on "
                "the number of workers, a resume is not exact, and a teacher's cache does not hold. Draw from torch, "
                "random or numpy.random themselves, or seed the generator in __getitem__ from what kdengine has set: "
                "rng = numpy.random.default_rng(torch.initial_seed()), or of albumentations "
                "transform.set_random_seed(torch.initial_seed() % 2**32)"
            )
        return item

    def draw(self, epoch: int) -> tuple[int, int] | None:
        """What the inputs of an epoch depend on beside the index: (seed, epoch), or nothing where they never change."""
        return (self.order.seed, epoch) if self._samples.varies else None

    def example(self) -> Indexed:
        """The first items of the data set as a batch, read in this process."""
        return self._noted(
            self._samples.__getitems__([(0, position) for position in range(min(len(self._samples), 8))])
        )

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for item in self.batches(epoch):
            yield _in_a_loop(item)


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
    stream = isinstance(dataset, IterableDataset)  # which inherits a __getitem__ that raises
    if stream or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
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


def _in_a_loop(item: Indexed) -> Any:
    """A batch as a loop of one's own gets it."""
    if isinstance(item.data, tuple | list):
        return WithIndex.of(item)
    if isinstance(item.data, Batch) and item.data.index is None and item.data.size == len(item.index):
        return item.data.replace(index=item.index)
    return item.data


def _as_is(batch: Any) -> Any:
    return batch
