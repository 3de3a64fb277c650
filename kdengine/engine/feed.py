"""The feed: the windows of micro-batches that make up the optimizer steps of an epoch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader

from kdengine.api import Batch, ConfigurationError
from kdengine.api.processes import ALONE, Processes
from kdengine.engine import random
from kdengine.engine.batching import take, uncounted
from kdengine.engine.loader import WHOLE, Loader, Share
from kdengine.engine.loaders import check_index, check_loader, known_batches, repeats_in_workers, restarted
from kdengine.engine.notices import Notices
from kdengine.engine.probe import same


class Feed:
    """Reads a loader in windows of ``accumulate`` micro-batches; the last window of an epoch may be shorter.

    A :class:`~kdengine.engine.loader.Loader` is entered at any batch. Any other iterable keeps its own order: its
    epoch is replayed from the random state that the epoch started with, and the batches already consumed are read
    and dropped.

    Among several processes, each takes its share of every batch of a ``Loader``. Another loader gives every process
    its own batches (a ``DistributedSampler``, or files of its own); where one has fewer than the others, a batch
    that counts nowhere keeps it in step.

    Args:
        loader: what the user gave to ``fit``.
        accumulate: micro-batches per optimizer step.
        to_batch: reads a loader's item as a batch.
        steps_per_epoch: optimizer steps per epoch: of a loader without a length, or fewer than one with a length gives.
        processes: the processes that train together.
        sharded: whether a loader that does not say so gives every process batches of its own.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        accumulate: int,
        to_batch: Callable[[Any], Batch],
        steps_per_epoch: int | None = None,
        *,
        processes: Processes = ALONE,
        sharded: bool = False,
    ) -> None:
        if accumulate < 1:
            raise ConfigurationError(f"accumulate must be at least 1, got {accumulate}")
        check_loader(loader)
        self.processes = processes
        self.share: Share = (processes.rank, processes.world)
        if processes.world > 1 and not (sharded or isinstance(loader, Loader)):
            check_sharded(loader, processes.world)
        self.loader = loader
        self.accumulate = accumulate
        self.to_batch = to_batch
        self.epoch_state: dict[str, Any] | None = None
        self._peeked: tuple[Iterator[Any] | None, list[Any]] = (None, [])
        self._example: Batch | None = None
        self._checked = False
        self._notices: Notices | None = Notices()  # until it has been used
        self.asked = steps_per_epoch is not None
        self.steps_per_epoch = self._count_steps(steps_per_epoch)

    def _count_steps(self, given: int | None) -> int:
        if given is not None:
            return self._check_steps(given)
        try:
            batches = len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            raise ConfigurationError(
                f"the loader {type(self.loader).__name__} has no length: pass fit(steps_per_epoch=...) so that "
                "schedules know how long training is"
            ) from None
        if batches == 0:
            raise ConfigurationError(f"the loader {type(self.loader).__name__} yields no batch: its length is 0")
        (steps,) = self.processes.largest([-(-batches // self.accumulate)])
        return steps

    def _check_steps(self, given: int) -> int:
        """The number of steps that was asked for; not more than the loader is known to give."""
        try:
            steps = operator.index(given)
        except TypeError:
            steps = 0
        if steps < 1:
            raise ConfigurationError(f"steps_per_epoch must be a whole number of at least 1, got {given!r}")
        known = known_batches(self.loader) if self.processes.world == 1 or self.exact else None
        if known == 0:
            raise ConfigurationError(f"the loader {type(self.loader).__name__} yields no batch: its length is 0")
        if known is not None and steps > -(-known // self.accumulate):
            raise ConfigurationError(
                f"steps_per_epoch is {steps}, but the loader {type(self.loader).__name__} gives {known} batches in an "
                f"epoch, which make {-(-known // self.accumulate)} steps of {self.accumulate}. Leave steps_per_epoch "
                "out, and pass more epochs for a longer training"
            )
        return steps

    def read_whole(self) -> None:
        """Let every process read whole batches: what batch transforms draw depends on all items of a step."""
        if isinstance(self.loader, Loader):
            self.share = WHOLE

    def transform_seed(self, seed: int) -> tuple[int | str, ...]:
        """Seeds what batch transforms draw: the same in every process that reads whole batches."""
        rank = () if self.share == WHOLE else (self.processes.rank,)
        return (seed, "batch", *rank)

    def take_share(self, window: list[Batch]) -> list[Batch]:
        """This process's part of batches that it has read whole."""
        own: Share = (self.processes.rank, self.processes.world)
        return window if self.share == own else [take(batch, own) for batch in window]

    @property
    def exact(self) -> bool:
        """Whether resume re-reads exactly the batches that were to come, whatever the loader does."""
        return isinstance(self.loader, Loader)

    @property
    def draws_nothing(self) -> bool:
        """Whether reading a batch, once an epoch has begun, leaves the random state of this process as it was."""
        loader = self.loader
        return isinstance(loader, Loader) or (isinstance(loader, DataLoader) and loader.num_workers > 0)

    def windows(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """The windows of one epoch from micro-batch ``start`` on; ``start`` is the first of a window."""
        stream = self._stream(epoch, start)
        count = start // self.accumulate
        while count < self.steps_per_epoch and (window := self._window(stream, epoch)):
            count += 1
            yield window
        if count < self.steps_per_epoch:
            self._tell_short(count, epoch)
        elif not self.asked and repeats_in_workers(self.loader):
            self._tell_long(stream)

    def _tell_long(self, stream: Iterator[Any]) -> None:
        """Warn of a stream that has batches left where its length says that all were read."""
        notices, self._notices = self._notices, None
        if notices is None:
            return
        with random.preserved():
            left = next(stream, None)
        if left is not None:
            notices.once(
                f"the {type(self.loader.dataset).__name__} has batches left when all that its length says "  # type: ignore[attr-defined]
                "were read: each worker seems to give every item, so that items come several times and others never. "
                "Let a worker take its part (torch.utils.data.get_worker_info), or use num_workers=1"
            )

    def _tell_short(self, steps: int, epoch: int) -> None:
        """Refuse an epoch without a batch, or of fewer steps than asked for; warn of fewer than the length says."""
        name = type(self.loader).__name__
        if steps == 0:
            once = isinstance(self.loader, Iterator) and epoch > 0
            raise ConfigurationError(
                f"the loader {name} yielded no batch in epoch {epoch + 1}"
                + once
                * "; it is an iterator, which is read once: give what begins anew at each epoch, such as a "
                "DataLoader, a list, or an object whose __iter__ makes a new generator" * once
            )
        if self.asked:
            raise ConfigurationError(
                f"the loader {name} ended after {steps} of {self.steps_per_epoch} steps in epoch {epoch + 1}, which "
                "steps_per_epoch asks for: learning rate and schedules would end in their middle. Pass "
                f"steps_per_epoch={steps}, or a loader with more batches"
            )
        notices, self._notices = self._notices, None
        if notices is None:
            return
        notices.once(
            f"the loader {name} gives fewer batches than its length says (in epoch {epoch + 1} they made {steps} of "
            f"{self.steps_per_epoch} steps): learning rate and schedules reckon with more steps than there are. Pass "
            "fit(steps_per_epoch=...) with the number of steps there are, or correct the loader's __len__"
        )

    def _window(self, stream: Iterator[Any], epoch: int) -> list[Batch]:
        """The next micro-batches of a step, as many as any process has; none at the epoch's end."""
        window = [self._read(item, epoch) for item in islice(stream, self.accumulate)]
        if self.processes.world == 1 or self.exact:
            return window
        (longest,) = self.processes.largest([len(window)])
        if len(window) < longest:
            idle = uncounted(window[-1] if window else self.example())
            window += [idle] * (longest - len(window))
        return window

    def _read(self, item: Any, epoch: int) -> Batch:
        batch = self.to_batch(item)
        if not self._checked:
            self._checked = True
            if getattr(self.to_batch, "own", None) is None:  # a function of the user's says itself what is an index
                check_index(batch, self.loader)
        draw = self.loader.draw(epoch) if isinstance(self.loader, Loader) else (None, epoch)
        return batch.replace(epoch=epoch, draw=draw)  # a batch of the user's own stays as it is

    def _stream(self, epoch: int, start: int) -> Iterator[Any]:
        if isinstance(self.loader, Loader):
            return self.loader.batches(epoch, start, self.share)
        return self._foreign(epoch, start)

    def _foreign(self, epoch: int, start: int) -> Iterator[Any]:
        sampler = getattr(self.loader, "sampler", None)
        if (set_epoch := getattr(sampler, "set_epoch", None)) is not None:
            set_epoch(epoch)
        if start == 0 or self.epoch_state is None:
            self.epoch_state = random.capture()
            return islice(self._open(), start, None)
        resumed = random.capture()
        random.restore(self.epoch_state)
        stream = self._open()
        for _ in islice(stream, start):
            pass
        random.restore(resumed)
        return stream

    def _open(self) -> Iterator[Any]:
        """The loader's own iterator; what :meth:`example` took from one that does not begin anew comes first."""
        (opened, first), self._peeked = self._peeked, (None, [])
        if self.processes.world == 1:
            self._example = None
        stream, anew = restarted(self.loader, opened)
        if anew:
            return _going_on([], stream)
        read = next(stream, _END)
        again = same(first[0], read)  # a file that was wound back, say
        return _going_on([read] if again else [*first, *([] if read is _END else [read])], stream)

    def reopened(self) -> Iterator[Any]:
        """The loader's items once more from the first, also after :meth:`example`."""
        yield from self._open()

    def example(self) -> Batch:
        """The first batch, read once and without disturbing order or random state."""
        if self._example is None:
            with random.preserved():
                self._example = self.to_batch(self._peek())
        return self._example.without_outputs()

    def _peek(self) -> Any:
        if isinstance(self.loader, Loader):
            return self.loader.example()
        stream = iter(self.loader)
        for item in stream:
            if not isinstance(self.loader, DataLoader):  # whose workers would wait for nothing
                self._peeked = stream, [item]
            return item
        raise ConfigurationError(f"the loader {type(self.loader).__name__} yields no batch")


_END = object()


def _going_on(first: list[Any], stream: Iterator[Any]) -> Iterator[Any]:
    """Some items, and what an iterator still has; it is not asked for an iterator again, which may wind it back."""
    yield from first
    while (item := next(stream, _END)) is not _END:
        yield item


def check_sharded(loader: Iterable[Any], world: int) -> None:
    """Refuse a loader that would give every process the same batches.

    Raises:
        ConfigurationError: nothing says that it gives each process a part.
    """
    for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        if getattr(sampler, "num_replicas", None) == world:
            return
    raise ConfigurationError(
        f"{world} processes train together, and nothing says that the loader {type(loader).__name__} gives each its "
        "own part of the data: use kdengine.loader(dataset, ...), which splits every batch, or a DataLoader with "
        "torch.utils.data.DistributedSampler; where each process reads data of its own, say so by fit(sharded=True)"
    )
