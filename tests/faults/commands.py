"""The kill matrix of whole commands: `kdengine run` is killed once at every distinct call that changes a file.

    python -m tests.faults.commands [--points N] [--seed S]

The command trains a teacher into the cache, keeps its logits, trains a student alone and a distilled one for two seeds,
and writes a report. A point has survived when the same command with `--resume` ends with exit code 0 and leaves what
the undisturbed one leaves: every student's bytes, records, summaries, checkpoints by number, and nothing temporary.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults import shim
from tests.faults.judge import Lost, require
from tests.faults.launcher import Launcher
from tests.faults.points import Point, modes_at
from tests.faults.reference import RUN
from tests.faults.shim import Call, Fault

LIKE = ("student.safetensors", "metrics.jsonl", "steps.jsonl", "recipe.toml", "seeds.json")


def trace(launcher: Launcher, folder: Path) -> list[Call]:
    """The calls of an undisturbed command, which writes below the folder.

    Raises:
        RuntimeError: it failed.
    """
    (folder / "recipes").mkdir(parents=True)
    (folder / "work").mkdir()
    ending = launcher.train(folder / "work" / RUN, command=str(folder / "recipes" / "whole.toml"))
    if not ending.finished:
        raise RuntimeError(f"the undisturbed command ended with {ending.status}, {ending.error}")
    return ending.calls


def distinct_points(calls: Sequence[Call], dice: random.Random) -> list[Point]:
    """One call of each kind, seeds and runs of the dice aside, killed in one of the ways that there are."""
    alike: dict[str, list[Call]] = {}
    for call in calls:
        alike.setdefault(re.sub(r"seed-\d+|epoch-\d+|[0-9a-f]{16}", "N", call.kind), []).append(call)
    chosen = [dice.choice(some) for some in alike.values()]
    return [Point(Fault(dice.choice(modes_at(call)), call.number), call) for call in chosen]


def survive(launcher: Launcher, whole: dict[str, Any], point: Point, folder: Path) -> None:
    """Kill a command at a point, go on with it, and compare.

    Raises:
        Lost: something was lost; the message says what and where.
    """
    for name in ("recipes", "work"):
        (folder / name).mkdir(parents=True)
    out, recipe = folder / "work" / RUN, str(folder / "recipes" / "whole.toml")
    killed = launcher.train(out, point.fault, command=recipe)
    if not killed.killed:
        raise RuntimeError(f"{point}: the command was not killed, it ended with {killed.status}, {killed.error}")
    again = launcher.train(out, command=recipe)
    try:
        require(again.finished, f"the resumed command ended with {again.status}, {again.error}")
        check(left(folder / "work"), whole)
    except Lost as error:
        raise Lost(f"{point}: {error}") from None
    shutil.rmtree(folder)


def check(found: dict[str, Any], whole: dict[str, Any]) -> None:
    """Compare what two commands have left."""
    for name in sorted({*found, *whole}):
        require(found.get(name) == whole.get(name), f"{name} is not what the undisturbed command leaves")


def left(folder: Path) -> dict[str, Any]:
    """What a command leaves, without what may differ: bytes of reports, and whether a teacher came from the cache."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name in LIKE:
            found[name] = path.read_bytes().replace(str(folder).encode(), b"")
        elif path.name == "summary.json":
            found[name] = _settled(json.loads(path.read_text()))
        elif path.is_dir() or path.name == "report.html" or path.name.startswith("."):
            found[name] = True
    return found


def _settled(summary: Any) -> Any:
    if isinstance(summary, dict):
        return {key: _settled(value) for key, value in summary.items() if key != "cached"}
    return summary


def survivors(
    launcher: Launcher, whole: dict[str, Any], points: Sequence[Point], folder: Path
) -> Iterator[tuple[Point, str | None]]:
    """For each point what was lost, or None."""
    for number, point in enumerate(points):
        try:
            survive(launcher, whole, point, folder / f"{number:04d}")
        except Lost as error:
            yield point, str(error)
        else:
            yield point, None


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the points and say how many were survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.commands", description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, help="how many points, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    options = parser.parse_args(arguments)
    if reason := shim.why_not():
        parser.exit(2, f"{reason}\n")
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        with Launcher(folder) as launcher:
            calls = trace(launcher, folder / "whole")
            points = distinct_points(calls, dice)
            if options.points is not None and options.points < len(points):
                points = dice.sample(points, options.points)
            print(f"{len(calls)} calls that change files, {len(points)} points", flush=True)
            whole, survived = left(folder / "whole" / "work"), 0
            for _, lost in survivors(launcher, whole, points, folder / "points"):
                survived += lost is None
                if lost is not None:
                    print(f"LOST  {lost}", flush=True)
    print(f"{len(points)} points tried, {survived} survived")
    return 0 if survived == len(points) else 1


if __name__ == "__main__":
    sys.exit(main())
