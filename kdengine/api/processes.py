"""The processes that train together, and what they tell each other on the host.

PyTorch's own process group does the work; it is joined where it exists, and made from the environment that
``torchrun`` sets where it does not. What is sent here is small and on the CPU: counts, decisions, random states.
Gradients and shards travel through DDP and FSDP2, see :mod:`kdengine.engine.strategies`.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from kdengine._launch import Launch, launched
from kdengine._processes import is_running as is_running
from kdengine.api.errors import ConfigurationError, KDEngineError, ProcessError

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""How long one process waits for another in a collective of a group that is made here."""
PATIENCE_FOR_NEWS = timedelta(seconds=5)
"""How long to look for the reason when a process was lost; word from another machine may take a moment."""


_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""From torch 2.14 on by its new name: the old one warns."""


class Processes:
    """One process on its own: what others would say is what it says.

    Attributes:
        rank: this process among ``world``, from 0.
        world: number of processes.
    """

    rank = 0
    world = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of every process, in the order of their ranks; all give equally many."""
        return [list(numbers)]

    def share(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks."""
        return [value]

    def wait(self) -> None:
        """Go on when every process is here."""

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of every process, in the order of their ranks; a process may have none."""
        return rows

    def explain(self, error: BaseException) -> BaseException:
        """The error to raise in place of one that was raised while training."""
        return error

    def end(self) -> None:
        """Leave together, where there are others."""

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest that any process gives, at each place."""
        return [max(column) for column in zip(*self.gather(numbers), strict=True)]

    def on_main(self, act: Callable[[], T]) -> T:
        """Let the main process alone do something, and every process have its result.

        Raises:
            ProcessError: it failed there; in the main process itself, the error as it is.
        """
        result: T | None = None
        failure: BaseException | None = None
        if self.is_main:
            try:
                result = act()
            except BaseException as error:
                failure = error
        told, reason = self.share((result, None if failure is None else _name(failure)))[0]
        if failure is not None:
            raise failure
        if reason is not None:
            raise ProcessError(f"process 0 of {self.world} failed: {reason}")
        return cast("T", told)


ALONE = Processes()
"""This process on its own."""


class Group(Processes):
    """The processes of the default process group.

    Args:
        made_here: whether the group was made by kdengine, which then ends it as well.
    """

    def __init__(self, *, made_here: bool) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.made_here = made_here
        self._default = dist.group.WORLD
        self._host: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._places = self.share((socket.gethostname(), os.getpid()))

    @property
    def is_current(self) -> bool:
        """Whether the process group is still the one that was joined."""
        return dist.is_initialized() and dist.group.WORLD is self._default

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of every process, in the order of their ranks; all give equally many."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        every = torch.empty(self.world * len(numbers), dtype=torch.int64)
        _all_gather(every, mine, group=self._host)
        return cast("list[list[int]]", every.view(self.world, -1).tolist())

    def share(self, value: T) -> list[T]:
        """The value of every process, in the order of their ranks."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._host)
        return values

    def wait(self) -> None:
        """Go on when every process is here."""
        dist.barrier(group=self._host)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of every process, in the order of their ranks; a process may have none."""
        sizes = [size for (size,) in self.gather([len(rows)])]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        every = rows.new_empty(len(sizes) * len(padded), *rows.shape[1:])
        _all_gather(every, padded)
        return torch.cat([part[:size] for part, size in zip(every.chunk(len(sizes)), sizes, strict=True)])

    def explain(self, error: BaseException) -> BaseException:
        """The error to raise in place of one that was raised while training.

        A failed collective says at best which address was lost. Who of the processes on this machine has died is asked
        of the system; the others say so themselves, as long as they can, in the store of the process group.
        """
        if not is_lost_peer(error):
            self._tell(error)
            return error
        lost = self._who_left()
        told = ProcessError(
            f"process {self.rank} of {self.world} lost another: {'; '.join(lost) or 'all others answer'}. "
            "The run directory holds its last checkpoint; go on from there"
        )
        self._tell(told)
        return told

    def _tell(self, error: BaseException) -> None:
        """Leave word for the others why this process ends."""
        with suppress(Exception):
            self._store.set(f"kdengine/left/{self.rank}", _name(error))

    def _who_left(self) -> list[str]:
        """The processes that have died or left, and why where they could say so."""
        deadline = time.monotonic() + PATIENCE_FOR_NEWS.total_seconds()
        others = [rank for rank in range(self.world) if rank != self.rank]
        while True:
            found = [reason for rank in others if (reason := self._why_gone(rank)) is not None]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def _why_gone(self, rank: int) -> str | None:
        with suppress(Exception):  # the store may have gone with the process that kept it
            if self._store.check([f"kdengine/left/{rank}"]):
                return f"process {rank} ended with {self._store.get(f'kdengine/left/{rank}').decode()}"
        host, pid = self._places[rank]
        if host == self._places[self.rank][0] and not is_running(pid):
            return f"process {rank} (pid {pid}) is gone; was it killed?"
        return None

    def end(self) -> None:
        """Leave the group together, where it was made here."""
        if self.made_here and self.is_current:
            with suppress(RuntimeError):
                self.wait()
            dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process is gone, rather than that something is wrong here."""
    if isinstance(error, KDEngineError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


_group: Group | None = None


def join() -> Processes:
    """The processes of this run: the process group that exists, one made for ``torchrun``, or this process alone.

    Raises:
        ConfigurationError: the environment names several processes, but they do not meet.
    """
    global _group
    exists = dist.is_available() and dist.is_initialized()
    if exists and dist.get_world_size() == 1:
        return ALONE
    if _group is not None and _group.is_current:
        return _group
    if exists:
        _group = Group(made_here=False)
        return _group
    launch = _launched()
    if launch.world == 1:
        return ALONE
    _group = _meet(launch)
    return _group


def joined() -> Processes:
    """The processes that have met already; this one alone where none have."""
    return _group if _group is not None and _group.is_current else ALONE


def _launched() -> Launch:
    try:
        return launched()
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _meet(launch: Launch) -> Group:
    if torch.cuda.is_available():
        torch.cuda.set_device(launch.local_rank)
    try:
        dist.init_process_group(timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"WORLD_SIZE is {launch.world}, but the processes do not meet: {_why_apart(error)}"
        ) from error
    group = Group(made_here=True)
    atexit.register(group.end)
    return group


def _why_apart(error: Exception) -> str:
    """Why processes do not meet, without the stack that torch may add."""
    reason = str(error).partition("\n")[0].strip()
    if "EADDRINUSE" in reason or "address already in use" in reason.lower():
        port = os.environ.get("MASTER_PORT")
        return f"port {port} is in use here by something else; choose another one: torchrun --master-port PORT ..."
    return f"{reason}; start them with torchrun --nproc-per-node N"
