"""Trainings with faults, from a process that stays whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults import shim
from tests.faults.shim import Call, Fault

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ending:
    """How one process of a training ended.

    Attributes:
        status: 0 when it finished, 1 after an exception; the negative number of the signal that ended it.
        calls: those that changed files, the last one perhaps in vain.
        error: type, text, number and path of the exception that ended the training, or None.
        messages: what a person was told.
        instants: how many there were, where they were counted.
    """

    status: int
    calls: list[Call]
    error: dict[str, Any] | None
    messages: list[str]
    instants: int

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def finished(self) -> bool:
        return self.status == 0


class Launcher:
    """Starts trainings under the shim; a context manager.

    Args:
        folder: where the shim is built.
    """

    def __init__(self, folder: Path) -> None:
        self.library = shim.build(folder)

    def __enter__(self) -> Launcher:
        environment = os.environ | {"LD_PRELOAD": str(self.library), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.faults.server"]
        self.server = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.communicate()

    def launch(
        self,
        out: Path,
        fault: Fault | None = None,
        *,
        world: int = 1,
        rank: int = 0,
        archive: Path | None = None,
        **options: Any,
    ) -> list[Ending]:
        """Start a training of `world` processes in a run directory, with a fault in one of them, and wait for all.

        Args:
            out: the run directory; calls are counted below the folder that it is in.
            fault: None for an undisturbed training.
            world: number of processes.
            rank: which of them has the fault.
            archive: gets a copy of every checkpoint.
            options: of the engine.

        Returns:
            How each process ended, by rank.
        """
        job = {"out": str(out), "archive": archive and str(archive), "world": world, "rank": rank}
        job |= {"fault": astuple(fault or Fault()), "options": options}
        self.server.stdin.write(json.dumps(job) + "\n")
        reply = self.server.stdout.readline()
        if not reply:
            raise RuntimeError(f"the process that starts trainings ended with {self.server.wait()}")
        return [
            Ending(**ending | {"calls": [Call(*fields) for fields in ending["calls"]]}) for ending in json.loads(reply)
        ]

    def train(self, out: Path, fault: Fault | None = None, *, rank: int = 0, **options: Any) -> Ending:
        """How the process with the fault ended; without one, the main process."""
        return self.launch(out, fault, rank=rank, **options)[rank]
