"""The compiled libraries of this process: where each was found or made, and loading it, once."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from kdengine.ops import build
from kdengine.ops.build import BuildError
from kdengine.ops.sources import CPU, CUDA, Library


class EnvironmentSettingError(ValueError):
    """A variable of the environment has a value that is unknown, or impossible on this machine."""


class UnavailableError(RuntimeError):
    """A compiled library cannot be had in this process; the message says why."""


class Loaded(NamedTuple):
    """A library in this process.

    Attributes:
        path: its file.
        origin: how it came there, to complete "the library ...".
    """

    path: Path
    origin: str


_loaded: dict[str, Loaded] = {}
_missing: dict[str, str] = {}
_sought: set[str] = set()
_lock = threading.RLock()


def shipped(library: Library) -> Path | None:
    """The library that was built when kdengine was installed, if it was."""
    path = Path(__file__).with_name(library.file)
    return path if path.is_file() else None


def candidates(library: Library) -> Iterator[Loaded]:
    """Where the library may be loaded from without compiling, the best first."""
    path = shipped(library)
    if path is not None:
        yield Loaded(path, "came with this installation")
    path = build.cached(library)
    if path is not None:
        yield Loaded(path, "was compiled on this machine")


def loaded(library: Library) -> Loaded | None:
    """The library, loaded if it can be without compiling; it is looked for once."""
    with _lock:
        if library.name not in _loaded and library.name not in _sought:
            _sought.add(library.name)
            for candidate in candidates(library):
                try:
                    return _load(library, candidate)
                except UnavailableError:
                    continue
        return _loaded.get(library.name)


def obtain(library: Library) -> Loaded:
    """The library, loaded; compiled before, if need be. A failure is remembered as long as the process lives.

    Raises:
        UnavailableError: it cannot be had; the message says why.
    """
    with _lock:
        if library.name in _missing:
            raise UnavailableError(_missing[library.name])
        try:
            return loaded(library) or _load(library, Loaded(build.build(library), "was compiled on this machine"))
        except (BuildError, UnavailableError) as error:
            _missing[library.name] = str(error)
            raise UnavailableError(str(error)) from error


def failure(library: Library) -> str | None:
    """Why the library could not be had when it was asked for, if so."""
    return _missing.get(library.name)


def _load(library: Library, candidate: Loaded) -> Loaded:
    if library is CUDA:
        obtain(CPU)  # which defines the operators
    try:
        torch.ops.load_library(candidate.path)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise UnavailableError(f"{candidate.path} cannot be loaded: {error}") from error
    _loaded[library.name] = candidate
    return candidate


def instruction_set() -> str:
    """The instruction set that the loaded library computes with.

    Raises:
        EnvironmentSettingError: `KDENGINE_CPU_ISA` asks for one that this processor does not have, or is unknown.
    """
    try:
        return str(torch.ops.kdengine.cpu_isa())
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        raise EnvironmentSettingError(told[max(told.find("KDENGINE_CPU_ISA"), 0) :]) from None


def architectures() -> tuple[str, ...]:
    """The compute capabilities that the loaded CUDA library has machine code for."""
    return tuple(str(torch.ops.kdengine.cuda_architectures()).split())
