"""What the shim is told and what it tells: faults, and the calls through which files changed."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SOURCE = Path(__file__).parent / "shim.c"


class Mode(StrEnum):
    """What happens at a call; an instant is one of the Python functions that run, which needs no shim."""

    TRACE = "not disturbed"
    BEFORE = "killed before"
    AFTER = "killed after"
    TORN = "killed halfway through"
    FULL = "disk full from"
    READ_ONLY = "disk read-only from"
    INSTANT = "killed at instant"


# In the order of the C enumeration.
NUMBERS = {
    mode: number
    for number, mode in enumerate((Mode.TRACE, Mode.BEFORE, Mode.AFTER, Mode.TORN, Mode.FULL, Mode.READ_ONLY))
}
NUMBERS[Mode.INSTANT] = NUMBERS[Mode.TRACE]


@dataclass(frozen=True)
class Fault:
    """What happens to one process.

    Attributes:
        mode: what happens.
        at: number of the call or of the instant, from 1.
        error: error number of the calls that are refused.
    """

    mode: Mode = Mode.TRACE
    at: int = 0
    error: int = 0

    @property
    def kills(self) -> bool:
        """Whether the process is to die of it."""
        return self.mode in (Mode.BEFORE, Mode.AFTER, Mode.TORN, Mode.INSTANT)


@dataclass(frozen=True)
class Call:
    """One call that changes a file; paths are those below the folder that the shim was armed for."""

    number: int
    name: str
    path: str
    second: str
    bytes: int

    @property
    def kind(self) -> str:
        """The function and what it worked on, without what differs from process to process."""
        return f"{self.name} {_lasting(self.path)}" + (f" -> {_lasting(self.second)}" if self.second else "")

    def __str__(self) -> str:
        return f"call {self.number}: {self.kind}" + (f", {self.bytes} bytes" if self.bytes else "")


def _lasting(path: str) -> str:
    """A path without the process, the dice and the step in its names."""
    path = re.sub(r"\.tmp-[0-9a-f]+-\d+-[0-9a-f]+-", ".tmp-", path)
    path = re.sub(r"\.tmp\w{6}$", ".tmp", path)
    return re.sub(r"step-\d+", "step", path)


def why_not() -> str | None:
    """Why there can be no shim here, or None."""
    if not sys.platform.startswith("linux"):
        return "the shim is made of Linux's calls"
    return None if shutil.which("cc") else "there is no C compiler here: cc"


def build(folder: Path) -> Path:
    """Compile the shim."""
    library = folder / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Trace:
    """Memory that outlives a killed process; the shim writes its calls there."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("trace")

    def take(self) -> list[Call]:
        """The calls so far; the memory is given back."""
        text = os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0).decode()
        os.close(self.descriptor)
        fields = (line.split("\t") for line in text.splitlines())
        return [Call(int(number), name, *paths, int(size)) for number, name, *paths, size in fields]


def arm(folder: Path, fault: Fault, trace: Trace) -> None:
    """Number this process's calls below a folder from now on, and strike at the fault's."""
    path = os.fsencode(folder)
    at = ctypes.c_long(0 if fault.mode is Mode.INSTANT else fault.at)
    ctypes.CDLL(None).fault_arm(path, at, NUMBERS[fault.mode], fault.error, trace.descriptor)


def disarm() -> None:
    """Let this process's calls be."""
    ctypes.CDLL(None).fault_disarm()
