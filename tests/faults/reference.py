"""The undisturbed training, that all others are compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.faults.launcher import Ending, Launcher
from tests.faults.shim import Call, Fault, Mode

RUN = "run"

Contents = dict[str, bytes]


@dataclass(frozen=True)
class Reference:
    """What the undisturbed training did.

    Attributes:
        out: its run directory.
        endings: how each process ended, with the calls that changed files and the number of instants.
        states: every checkpoint that it wrote; there may be several of one step.
        options: those of the engine.
    """

    out: Path
    endings: list[Ending]
    states: list[Contents]
    options: dict[str, Any]

    @property
    def calls(self) -> list[Call]:
        """The calls of the main process."""
        return self.endings[0].calls


def undisturbed(launcher: Launcher, folder: Path, **options: Any) -> Reference:
    """Train once without a fault.

    Args:
        launcher: starts the training.
        folder: where it writes.
        options: ``world``, the number of processes, and those of the engine.
    """
    archive = folder / "archive"
    archive.mkdir(parents=True)
    out = folder / "undisturbed" / RUN
    out.parent.mkdir()
    endings = launcher.launch(out, Fault(Mode.INSTANT), archive=archive, **options)
    for rank, ending in enumerate(endings):
        if not ending.finished:
            raise RuntimeError(f"process {rank} of the undisturbed training ended with {ending.status}, {ending.error}")
    endings = [count_instants(launcher, folder, rank, ending, options) for rank, ending in enumerate(endings)]
    states = [contents(path) for path in sorted(archive.iterdir())]
    return Reference(out, endings, states, options)


def count_instants(launcher: Launcher, folder: Path, rank: int, ending: Ending, options: dict[str, Any]) -> Ending:
    """The ending of a process with its instants, which are counted where the fault is."""
    if rank == 0:
        return ending
    counted = launcher.train(folder / f"counted-{rank}" / RUN, Fault(Mode.INSTANT), rank=rank, **options)
    return replace(ending, instants=counted.instants)


def contents(folder: Path) -> Contents:
    """Every file below a folder, by its path in it.

    The library that writes shards puts their metadata in an order of chance: they are compared in order, and manifests,
    which hold their hashes, by the rest of what they say.
    """
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    shards = {name for name in found if "shards/" in name}
    for name in shards:
        found[name] = in_order(found[name])
    for name in found:
        if name.endswith("manifest.json") and shards:
            found[name] = json.dumps(json.loads(found[name])["meta"], sort_keys=True).encode()
    return found


def in_order(shard: bytes) -> bytes:
    """A safetensors file with its header sorted."""
    length = int.from_bytes(shard[:8], "little")
    return json.dumps(json.loads(shard[8 : 8 + length]), sort_keys=True).encode() + shard[8 + length :]
