"""Where a training is killed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tests.faults.reference import Reference
from tests.faults.shim import Call, Fault, Mode

INSTANTS = 60
TWICE = 40
WRITES = ("write", "pwrite", "pwrite64", "writev")


@dataclass(frozen=True)
class Point:
    """Where a training is killed.

    Attributes:
        fault: what kills it.
        call: the call that the fault belongs to, or None for an instant.
        again: the resumed training is killed as well, where this seed says.
        rank: the process that is killed; the others then are, as by torchrun.
    """

    fault: Fault
    call: Call | None = None
    again: int | None = None
    rank: int = 0

    @property
    def kind(self) -> str:
        """Mode and call, without what differs from step to step."""
        return f"{self.fault.mode} {self.call.kind if self.call else ''}".strip()

    def __str__(self) -> str:
        where = self.call or self.fault.at
        process = f" in process {self.rank}" if self.rank else ""
        again = "" if self.again is None else f", and again by seed {self.again}"
        return f"{self.fault.mode} {where}{process}{again}"


def points_at_calls(reference: Reference) -> list[Point]:
    """Before and after every call, and in the middle of every write."""
    return [
        Point(Fault(mode, call.number), call, rank=rank)
        for rank, ending in enumerate(reference.endings)
        for call in ending.calls
        for mode in modes_at(call)
    ]


def modes_at(call: Call) -> list[Mode]:
    """The ways to be killed at a call."""
    torn = [Mode.TORN] if call.name in WRITES and call.bytes > 1 else []
    return [Mode.BEFORE, Mode.AFTER, *torn]


def points_at_instants(reference: Reference, count: int, dice: random.Random) -> list[Point]:
    """Calls of functions of the package, drawn at random, in every process as many."""
    return [
        Point(Fault(Mode.INSTANT, at), rank=rank)
        for rank, ending in enumerate(reference.endings)
        for at in sorted(dice.sample(range(1, ending.instants + 1), -(-count // len(reference.endings))))
    ]


def points_twice(reference: Reference, count: int, dice: random.Random) -> list[Point]:
    """Any of the points at calls, with a second kill while the training is resumed."""
    chosen = dice.sample(points_at_calls(reference), count)
    return [replace(point, again=dice.randrange(2**31)) for point in chosen]


def every_point(reference: Reference, seed: int) -> list[Point]:
    """The whole matrix."""
    dice = random.Random(seed)
    return [
        *points_at_calls(reference),
        *points_at_instants(reference, INSTANTS, dice),
        *points_twice(reference, TWICE, dice),
    ]


def one_of_each_kind(points: Iterable[Point], dice: random.Random) -> list[Point]:
    """One point, drawn at random, for every function, every file that is torn and every rename of a checkpoint."""
    alike: dict[str, list[Point]] = {}
    for point in points:
        renames = point.call.kind.endswith("step") and point.call.second
        kind = point.kind if point.fault.mode is Mode.TORN else point.call.kind if renames else point.call.name
        alike.setdefault(kind, []).append(point)
    return [dice.choice(some) for some in alike.values()]
