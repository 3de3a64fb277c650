"""The undisturbed training, that all others are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.launcher import Launcher
from tests.faults.shim import Call, Fault, Mode

RUN = "run"

Contents = dict[str, bytes]


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
