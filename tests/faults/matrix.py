"""The kill matrix: a training is killed at every call that changes a file and at instants in between, and resumed.

    python -m tests.faults.matrix [--points N] [--processes 1] [--seed S]

A point has survived when after the kill every checkpoint is one of those that the undisturbed training wrote, the
newest that was complete is found, and the resumed training ends with the undisturbed one's bytes.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdengine.api import CheckpointError
from kdengine.engine import checkpoint
from tests.faults import shim
from tests.faults.launcher import Ending, Launcher
from tests.faults.shim import Call, Fault, Mode

RUN = "run"
INSTANTS = 60
TWICE = 40
WRITES = ("write", "pwrite", "pwrite64", "writev")
PUBLISHED = re.compile(rf"{RUN}/checkpoints/step-(\d+)")
ENDS_WITH = ("student.safetensors", "metrics.jsonl", "summary.json")

Contents = dict[str, bytes]


class Lost(AssertionError):
    """A point was not survived."""


@dataclass(frozen=True)
class Reference:
    """What the undisturbed training did.

    Attributes:
        out: its run directory.
        calls: those that changed files.
        instants: how many there were.
        states: every checkpoint that it wrote; there may be several of one step.
        options: those of the engine.
    """

    out: Path
    calls: list[Call]
    instants: int
    states: list[Contents]
    options: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Where a training is killed.

    Attributes:
        fault: what kills it.
        call: the call that the fault belongs to, or None for an instant.
        again: the resumed training is killed as well, where this seed says.
    """

    fault: Fault
    call: Call | None = None
    again: int | None = None

    @property
    def kind(self) -> str:
        """Mode and call, without what differs from step to step."""
        return f"{self.fault.mode} {self.call.kind if self.call else ''}".strip()

    def __str__(self) -> str:
        where = self.call or self.fault.at
        return f"{self.fault.mode} {where}" + ("" if self.again is None else f", and again by seed {self.again}")


def undisturbed(launcher: Launcher, folder: Path, **options: Any) -> Reference:
    """Train once without a fault."""
    archive = folder / "archive"
    archive.mkdir(parents=True)
    out = folder / "undisturbed" / RUN
    out.parent.mkdir()
    ending = launcher.train(out, Fault(Mode.INSTANT), archive=archive, **options)
    if not ending.finished:
        raise RuntimeError(f"the undisturbed training ended with {ending.status}, {ending.error}")
    states = [contents(path) for path in sorted(archive.iterdir())]
    return Reference(out, ending.calls, ending.instants, states, options)


def contents(folder: Path) -> Contents:
    """Every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- points


def points_at_calls(reference: Reference) -> list[Point]:
    """Before and after every call, and in the middle of every write."""
    found = []
    for call in reference.calls:
        modes = [Mode.BEFORE, Mode.AFTER]
        if call.name in WRITES and call.bytes > 1:
            modes.append(Mode.TORN)
        found += [Point(Fault(mode, call.number), call) for mode in modes]
    return found


def points_at_instants(reference: Reference, count: int, dice: random.Random) -> list[Point]:
    """Calls of functions of the package, drawn at random."""
    return [Point(Fault(Mode.INSTANT, at)) for at in sorted(dice.sample(range(1, reference.instants + 1), count))]


def points_twice(reference: Reference, count: int, dice: random.Random) -> list[Point]:
    """Any of the points at calls, with a second kill while the training is resumed."""
    chosen = dice.sample(points_at_calls(reference), count)
    return [Point(point.fault, point.call, dice.randrange(2**31)) for point in chosen]


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


# ---- one point


def survive(launcher: Launcher, reference: Reference, point: Point, folder: Path) -> None:
    """Kill a training at a point, resume it, and compare.

    Raises:
        Lost: something was lost; the message says what and where.
    """
    out = folder / RUN
    folder.mkdir(parents=True)
    try:
        killed = kill(launcher, reference, out, point)
        check_killed(out, reference, executed(killed, point.fault))
        if point.again is not None:
            kill_while_resuming(launcher, reference, out, random.Random(point.again))
        check_resumed(launcher.train(out, **reference.options), out, reference)
    except Lost as error:
        raise Lost(f"{point}: {error}") from None
    shutil.rmtree(folder)


def kill(launcher: Launcher, reference: Reference, out: Path, point: Point) -> Ending:
    """A training that dies where it shall; that it does is up to the harness."""
    ending = launcher.train(out, point.fault, **reference.options)
    if not ending.killed:
        raise RuntimeError(f"{point}: the training was not killed, it ended with {ending.status}, {ending.error}")
    if point.call is not None and ending.calls[-1].kind != point.call.kind:
        raise RuntimeError(f"{point}: the training was killed at another call, {ending.calls[-1]}")
    return ending


def kill_while_resuming(launcher: Launcher, reference: Reference, out: Path, dice: random.Random) -> None:
    """Find the calls of the resumed training with a copy, and kill the training itself at one of them."""
    rehearsed = out.parent / "copy" / RUN
    shutil.copytree(out, rehearsed)
    rehearsal = launcher.train(rehearsed, **reference.options)
    check_resumed(rehearsal, rehearsed, reference)
    shutil.rmtree(rehearsed.parent)
    call = dice.choice(rehearsal.calls)
    second = Point(Fault(dice.choice([Mode.BEFORE, Mode.AFTER]), call.number), call)
    try:
        killed = kill(launcher, reference, out, second)
        check_killed(out, reference, executed(killed, second.fault))
    except Lost as error:
        raise Lost(f"again {second}: {error}") from None


def executed(ending: Ending, fault: Fault) -> list[Call]:
    """The calls that took place as a whole."""
    return ending.calls[:-1] if fault.mode in (Mode.BEFORE, Mode.TORN) else ending.calls


def published(calls: Iterable[Call]) -> list[int]:
    """The steps whose checkpoints were given their name."""
    return [int(match[1]) for call in calls if (match := PUBLISHED.fullmatch(call.second))]


# ---- what has to hold


def check_killed(out: Path, reference: Reference, calls: Sequence[Call]) -> None:
    """Nothing partial stands under its name, and the newest checkpoint that was complete is found."""
    check_checkpoints(out, reference)
    check_newest(out, published(calls))
    final = contents(reference.out)
    for name in ("student.safetensors", "summary.json"):
        if (out / name).exists():
            require((out / name).read_bytes() == final[name], f"{name} is there and is not whole")
    if (out / "metrics.jsonl").exists():
        records = (out / "metrics.jsonl").read_bytes()
        require(final["metrics.jsonl"].startswith(records), "metrics.jsonl is not a beginning of the undisturbed one")


def check_checkpoints(out: Path, reference: Reference) -> None:
    """Every checkpoint loads, and is one that the undisturbed training wrote."""
    for path in (out / "checkpoints").glob("step-*"):
        try:
            checkpoint.load(path)
        except CheckpointError as error:
            raise Lost(f"a kill left a damaged checkpoint: {error}") from error
        require(contents(path) in reference.states, f"{path.name} is no checkpoint of the undisturbed training")


def check_newest(out: Path, steps: Sequence[int]) -> None:
    """The newest checkpoint is no older than the newest of those steps."""

    def damaged(path: Path, error: CheckpointError) -> None:
        raise Lost(f"the newest checkpoint is damaged: {error}")

    newest = checkpoint.find_latest(out / "checkpoints", on_damaged=damaged)
    found = -1 if newest is None else checkpoint.load(newest)[0]["position"]["step"]
    require(found >= max(steps, default=-1), f"step {max(steps, default=-1)} was complete, found is {newest}")


def check_resumed(ending: Ending, out: Path, reference: Reference) -> None:
    """The training has ended with the undisturbed one's bytes, and nothing temporary is left."""
    require(ending.finished, f"the resumed training ended with {ending.status}, {ending.error}")
    final, found = contents(reference.out), contents(out)
    for name in ENDS_WITH:
        require(found.get(name) == final[name], f"{name} is not the undisturbed one's")
    newest = max(name for name in final if name.startswith("checkpoints/"))
    for name in (name for name in final if Path(name).parent == Path(newest).parent):
        require(found.get(name) == final[name], f"{name} is not the undisturbed one's")
    check_checkpoints(out, reference)
    check_newest(out, [max(checkpoint.steps(reference.out / "checkpoints"))])
    left = [str(path.relative_to(out)) for path in out.rglob(".tmp-*")]
    require(not left, f"temporaries are left: {left}")


def require(holds: bool, message: str) -> None:
    """Raise Lost where something does not hold."""
    if not holds:
        raise Lost(message)


# ---- the command


def survivors(launcher: Launcher, reference: Reference, points: Sequence[Point], folder: Path) -> Iterator[str | None]:
    """For each point what was lost, or None."""
    for number, point in enumerate(points):
        try:
            survive(launcher, reference, point, folder / f"{number:04d}")
        except Lost as error:
            yield str(error)
        else:
            yield None


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the points, print a table, and say how many were survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, help="how many points, drawn at random; all by default")
    parser.add_argument("--processes", type=int, choices=[1], default=1, help="processes of the training")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    options = parser.parse_args(arguments)
    if reason := shim.why_not():
        parser.exit(2, f"{reason}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        with Launcher(folder) as launcher:
            return report(launcher, folder, options.points, options.seed)


def report(launcher: Launcher, folder: Path, count: int | None, seed: int) -> int:
    """The matrix as a table; 0 when every point was survived."""
    started = time.perf_counter()
    reference = undisturbed(launcher, folder / "reference")
    points = every_point(reference, seed)
    if count is not None and count < len(points):
        points = random.Random(seed).sample(points, count)
    tried, survived = Counter(), Counter()
    for point, lost in zip(points, survivors(launcher, reference, points, folder / "points"), strict=True):
        tried[cell(point)] += 1
        survived[cell(point)] += lost is None
        if lost is not None:
            print(f"LOST  {lost}", flush=True)
    print(f"{len(reference.calls)} calls that change files, {reference.instants} instants; survived/tried:")
    print_table(tried, survived)
    total = survived.total()
    print(f"{time.perf_counter() - started:.0f} s")
    print(f"{tried.total()} points tried, {total} survived, bits equal {total}")
    return 0 if total == tried.total() else 1


def cell(point: Point) -> tuple[str, Mode]:
    """Row and column of the table."""
    if point.again is not None:
        return "any call, and again while resuming", Mode.BEFORE
    return (point.call.kind, point.fault.mode) if point.call else ("any instant", Mode.BEFORE)


def print_table(tried: Counter[tuple[str, Mode]], survived: Counter[tuple[str, Mode]]) -> None:
    """A row for every kind of call, a column for every mode."""
    columns = {Mode.BEFORE: "before", Mode.AFTER: "after", Mode.TORN: "torn"}
    print("".join(f"{title:>10}" for title in columns.values()))
    for row in sorted({row for row, _ in tried}):
        numbers = [f"{survived[row, mode]}/{tried[row, mode]}" if tried[row, mode] else "" for mode in columns]
        print("".join(f"{number:>10}" for number in numbers) + f"  {row}")


if __name__ == "__main__":
    sys.exit(main())
