"""The compilers of this machine, found by asking them; `setup.py` reads this module by its path, as `sources`."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Compiler(NamedTuple):
    """A compiler that answers.

    Attributes:
        command: how it is called.
        version: the line by which it names itself.
    """

    command: tuple[str, ...]
    version: str


def cxx() -> Compiler | None:
    """The C++ compiler: `$CXX`, else g++, else whatever the system calls c++. MSVC has never been tried."""
    if sys.platform == "win32":
        return None
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]) is not None:
            told = _ask(*command, "--version")
            if told:
                return Compiler(tuple(command), told.splitlines()[0])
    return None


def nvcc() -> Compiler | None:
    """The CUDA compiler: below `$CUDA_HOME`, else on the path, else where its installer puts it."""
    home = os.environ.get("CUDA_HOME")
    places = [Path(home, "bin", "nvcc")] if home else [Path("nvcc"), Path("/usr/local/cuda/bin/nvcc")]
    for place in places:
        found = shutil.which(place)
        if found is not None:
            lines = [line for line in _ask(found, "--version").splitlines() if "release" in line]
            if lines:
                return Compiler((found,), lines[0].partition("release ")[2].partition(",")[0])
    return None


def toolkit(compiler: Compiler) -> Path:
    """The folder of the toolkit behind nvcc, which may be a script that calls another."""
    told = _ask(*compiler.command, "--dryrun", "-x", "cu", os.devnull)
    top = [line.partition("TOP=")[2] for line in told.splitlines() if "TOP=" in line]
    return Path(top[0]).resolve() if top else Path(compiler.command[0]).resolve().parents[1]


def supported(compiler: Compiler, architectures: Iterable[str]) -> list[str]:
    """Those of the architectures that this nvcc knows."""
    known = _ask(*compiler.command, "--list-gpu-arch").split()
    return [arch for arch in architectures if f"compute_{arch}" in known]


def compression(compiler: Compiler) -> list[str]:
    """The flag that halves a library of many architectures; drivers from before CUDA 12.4 cannot unpack it."""
    major = compiler.version.partition(".")[0]
    return ["--compress-mode=size"] if major.isdigit() and int(major) >= 13 else []


def listed() -> tuple[str, ...]:
    """The architectures of `$TORCH_CUDA_ARCH_LIST`, which torch's own extensions read: 80 and 90 of "8.0;9.0+PTX"."""
    entries = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    numbers = {entry.removesuffix("+PTX").replace(".", "") for entry in entries}
    return tuple(sorted(filter(str.isdigit, numbers), key=int))


@cache
def _ask(*command: str) -> str:
    """What a command prints on either stream; nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout + done.stderr
