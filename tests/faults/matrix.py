"""The kill matrix: a training is killed at every call that changes a file and at instants in between, and resumed.

    python -m tests.faults.matrix [--points N] [--processes 2] [--strategy fsdp] [--seed S]

A point has survived when after the kill every checkpoint is one of those that the undisturbed training wrote, the
newest that was complete is found, and the resumed training ends with the undisturbed one's bytes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults import shim
from tests.faults.judge import Lost, check_killed, check_resumed, executed
from tests.faults.launcher import Ending, Launcher
from tests.faults.points import Point, every_point, modes_at
from tests.faults.reference import RUN, Reference, undisturbed
from tests.faults.shim import Call, Fault, Mode


def survive(launcher: Launcher, reference: Reference, point: Point, folder: Path) -> None:
    """Kill a training at a point, resume it, and compare.

    Raises:
        Lost: something was lost; the message says what and where.
    """
    out = folder / RUN
    folder.mkdir(parents=True)
    try:
        calls = kill(launcher, reference, out, point)
        check_killed(out, reference, calls)
        if point.again is not None:
            kill_while_resuming(launcher, reference, out, calls, random.Random(point.again))
        check_resumed(launcher.launch(out, **reference.options), out, reference)
    except Lost as error:
        raise Lost(f"{point}: {error}") from None
    shutil.rmtree(folder)


def kill(launcher: Launcher, reference: Reference, out: Path, point: Point) -> list[Call]:
    """The calls that the main process of a training made until a process died where it should.

    That it does is up to the harness.
    """
    endings = launcher.launch(out, point.fault, rank=point.rank, **reference.options)
    ending = endings[point.rank]
    if not ending.killed:
        raise RuntimeError(f"{point}: the training was not killed, it ended with {ending.status}, {ending.error}")
    if point.call is not None and ending.calls[-1].kind != point.call.kind:
        raise RuntimeError(f"{point}: the training was killed at another call, {ending.calls[-1]}")
    return executed(ending, point.fault) if point.rank == 0 else endings[0].calls[:-1]


def kill_while_resuming(
    launcher: Launcher, reference: Reference, out: Path, calls: Sequence[Call], dice: random.Random
) -> None:
    """Find the calls of the resumed training with a copy, and kill the training itself at one of them.

    Args:
        launcher: starts trainings.
        reference: the undisturbed training.
        out: the run directory.
        calls: those of the training that was killed first.
        dice: choose the second point.
    """
    rehearsed = out.parent / "copy" / RUN
    shutil.copytree(out, rehearsed)
    rehearsal = launcher.launch(rehearsed, **reference.options)
    check_resumed(rehearsal, rehearsed, reference)
    shutil.rmtree(rehearsed.parent)
    call = dice.choice(rehearsal[0].calls)
    second = Point(Fault(dice.choice(modes_at(call)), call.number), call)
    try:
        check_killed(out, reference, [*calls, *kill(launcher, reference, out, second)])
    except Lost as error:
        raise Lost(f"again {second}: {error}") from None


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
    parser.add_argument("--processes", type=int, default=1, help="processes of the training")
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp", help="of several processes")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    options = parser.parse_args(arguments)
    if reason := shim.why_not():
        parser.exit(2, f"{reason}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        with Launcher(folder) as launcher:
            started = time.perf_counter()
            reference = undisturbed(launcher, folder / "reference", world=options.processes, strategy=options.strategy)
            code = report(launcher, reference, folder, options.points, options.seed)
            print(f"{time.perf_counter() - started:.0f} s")
            return code


def report(launcher: Launcher, reference: Reference, folder: Path, count: int | None, seed: int) -> int:
    """The matrix as a table; 0 when every point was survived."""
    points = every_point(reference, seed)
    if count is not None and count < len(points):
        points = random.Random(seed).sample(points, count)
    tried, survived = Counter(), Counter()
    for point, lost in zip(points, survivors(launcher, reference, points, folder / "points"), strict=True):
        tried[cell(point)] += 1
        survived[cell(point)] += lost is None
        if lost is not None:
            print(f"LOST  {lost}", flush=True)
    calls, instants = (sum(numbers) for numbers in zip(*map(sizes, reference.endings), strict=True))
    print(f"{calls} calls that change files, {instants} instants; survived/tried:")
    print_table(tried, survived)
    total = survived.total()
    print(f"{tried.total()} points tried, {total} survived, bits equal {total}")
    return 0 if total == tried.total() else 1


def sizes(ending: Ending) -> tuple[int, int]:
    """How many calls and instants a process had."""
    return len(ending.calls), ending.instants


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
