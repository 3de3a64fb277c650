"""Compiles a library into the user's cache, once for all processes and at the first use of it."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from kdengine import _files
from kdengine._cache import cache_folder
from kdengine._locks import Busy, locked
from kdengine._paths import expanded
from kdengine.ops import sources, toolchain, trust
from kdengine.ops.sources import Library
from kdengine.ops.toolchain import Compiler

VARIABLE = "KDENGINE_LIBRARIES"
DURATION = {"cpu": "under a minute", "cuda": "minutes"}


class BuildError(RuntimeError):
    """A library cannot be compiled here; the message says why.

    Args:
        message: why, in a line.
        log: all that the compiler said.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Tools(NamedTuple):
    """What a library is compiled with; `nvcc` and `architectures` are those of the CUDA library."""

    cxx: Compiler
    nvcc: Compiler | None = None
    architectures: tuple[str, ...] = ()

    def describe(self) -> str:
        """For messages and for the name of what they build."""
        if self.nvcc is None:
            return self.cxx.version
        return f"nvcc {self.nvcc.version} for {' '.join(f'sm_{arch}' for arch in self.architectures)}"


def libraries_folder() -> Path:
    """Where compiled libraries are kept: `$KDENGINE_LIBRARIES`, else `libraries` in the cache folder."""
    named = os.environ.get(VARIABLE)
    return expanded(named) if named else cache_folder() / "libraries"


def kept() -> Iterator[Path]:
    """The folders of compiled libraries in the cache, of any sources and torch."""
    for library in (sources.CPU, sources.CUDA):
        for path in sorted(libraries_folder().glob(f"{library.name}-*/{library.file}")):
            yield path.parent


def find_tools(library: Library) -> Tools:
    """The compilers of this machine.

    Raises:
        BuildError: there are none, or they or torch cannot make this library.
    """
    if library.name == "cuda" and torch.version.cuda is None:
        raise BuildError(f"torch {torch.__version__} is not a CUDA build")
    cxx = toolchain.cxx()
    if cxx is None:
        named = os.environ.get("CXX")
        advice = f"CXX={named} does not answer" if named else "install g++ or clang, or name one with CXX"
        raise BuildError(f"there is no C++ compiler here ({advice})")
    if library.name == "cpu":
        return Tools(cxx)
    nvcc = toolchain.nvcc()
    if nvcc is None:
        raise BuildError("there is no CUDA compiler here (install the CUDA toolkit, or say where with CUDA_HOME)")
    known = toolchain.supported(nvcc, _architectures())
    if not known:
        raise BuildError(f"nvcc {nvcc.version} knows none of the architectures {', '.join(_architectures())}")
    return Tools(cxx, nvcc, tuple(known))


def _architectures() -> tuple[str, ...]:
    """Those that the user lists, else those of the GPUs here, else all."""
    present = {torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count())}
    here = tuple(f"{major}{minor}" for major, minor in sorted(present))
    return toolchain.listed() or here or sources.ARCHITECTURES


def place(library: Library, tools: Tools) -> Path:
    """Where the library that these tools build is kept: another one for other sources, torch or compiler."""
    made_by = sha256(tools.describe().encode()).hexdigest()[:8]
    return libraries_folder() / f"{_stem(library)}-{made_by}" / library.file


def _stem(library: Library) -> str:
    facts = [sources.digest(library, sources.folder()), str(torch.__version__), platform.system(), platform.machine()]
    facts += [*sources.nvcc_flags(["0"]), *sources.cxx_flags(), str(torch.compiled_with_cxx11_abi())]
    return f"{library.name}-{sha256(' '.join(facts).encode()).hexdigest()[:16]}"


def cached(library: Library) -> Path | None:
    """The library in the cache, if it is there. Without a compiler any will do that was built from these sources.

    One that another user could have made or changed is none: it would run with the rights of this process.
    """
    try:
        found = place(library, find_tools(library))
    except BuildError:
        others = (path for path in _all_of(library) if refusal(path) is None)
        return max(others, key=lambda path: path.stat().st_mtime, default=None)
    except OSError:  # no cache at all
        return None
    return found if found.is_file() and refusal(found) is None else None


def _all_of(library: Library) -> Iterator[Path]:
    try:
        yield from libraries_folder().glob(f"{_stem(library)}-*/{library.file}")
    except OSError:
        return


def refused(library: Library) -> str | None:
    """Why a library that is in the cache is not loaded, or None."""
    return next((reason for path in _all_of(library) if (reason := refusal(path)) is not None), None)


def refusal(path: Path) -> str | None:
    """Why a library in the cache must not be loaded, and what to do; None where it may be, or is not there yet."""
    reason = trust.distrust(path)
    return reason and (
        f"{reason}; a library that others can change is not loaded: name a folder of your own with {VARIABLE}, "
        f"or remove {path.parent}"
    )


def build(library: Library, *, force: bool = False) -> Path:
    """Compile a library into the cache, unless it is there.

    Processes that want the same library at the same time wait for the first. The lock is the system's and ends with
    its process; what a killed process leaves behind is removed by the next.

    Args:
        library: which one.
        force: compile even if it is there.

    Returns:
        Where it lies.

    Raises:
        BuildError: it cannot be compiled.
    """
    tools = find_tools(library)
    try:
        target = place(library, tools)
    except OSError as error:
        raise BuildError(str(error)) from error
    if (reason := refusal(target)) is not None:
        raise BuildError(reason)
    if target.is_file() and not force:
        return target
    asked = time.time()
    try:
        _make_folder(target.parent)
        with _alone(target.parent):
            if not _done_meanwhile(target, asked, force):
                _build(library, tools, target)
    except OSError as error:
        raise BuildError(
            f"{target.parent} cannot be written: {error.strerror or error}; name a folder that can with {VARIABLE}"
        ) from error
    return target


def _make_folder(folder: Path) -> None:
    """Make a library's folder, and the one of all libraries, such that others cannot write there."""
    for path in (folder.parent, folder):
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            trust.protect(path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from building in a folder."""
    with ExitStack() as held:
        waiting = False
        while True:
            try:
                held.enter_context(locked(lock_of(folder)))
                break
            except Busy as owner:
                if not waiting:
                    _tell(f"waiting for {owner}, which compiles the loss kernels")
                waiting = True
                time.sleep(0.1)
        yield


def lock_of(folder: Path) -> Path:
    """The lock of a folder in which a library is compiled."""
    return folder / "lock"


def _done_meanwhile(target: Path, asked: float, force: bool) -> bool:
    """Whether another process has built the library while this one waited; its failure is this one's too."""
    failed = target.parent / "failed.txt"
    if failed.is_file() and failed.stat().st_mtime > asked:
        raise BuildError(failed.read_text(encoding="utf-8"))
    return target.is_file() and (not force or target.stat().st_mtime > asked)


def _build(library: Library, tools: Tools, target: Path) -> None:
    for left in target.parent.glob("work-*"):
        for path in left.iterdir():
            path.unlink()
        left.rmdir()
    failed = target.parent / "failed.txt"
    _files.remove(failed)
    _tell(f"compiling the loss kernels with {tools.describe()}, once; it takes {DURATION[library.name]}")
    started = time.monotonic()
    with TemporaryDirectory(prefix="work-", dir=target.parent) as work:
        try:
            made = compile_library(library, tools, Path(work))
        except BuildError as error:
            log = target.parent / "build.log"
            _files.write_text(log, error.log)
            _files.write_text(failed, f"{error} (all of it in {log})")
            raise BuildError(failed.read_text(encoding="utf-8")) from None
        trust.protect(made)
        made.replace(target)
    _tell(f"compiled in {time.monotonic() - started:.0f} s: {target}")


def compile_library(library: Library, tools: Tools, work: Path) -> Path:
    """Compile and link a library in a folder, as many sources at a time as there are processors.

    Raises:
        BuildError: a compiler or the linker fails.
    """
    csrc = sources.folder()
    files = library.sources(csrc)
    if not files:
        raise BuildError(f"{csrc} has no sources of the {library.name} library")
    objects = [work / f"{number}-{path.name}.o" for number, path in enumerate(files)]
    commands = [_compile(path, to, tools) for path, to in zip(files, objects, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    made = work / library.file
    _run(_link(library, objects, made, tools))
    return made


def _compile(path: Path, to: Path, tools: Tools) -> list[str]:
    include = Path(torch.__file__).parent / "include"
    hidden = (sources.folder(), include)
    end = [f"-I{include}", "-c", str(path), "-o", str(to)]
    if path.suffix == ".cu":
        assert tools.nvcc is not None
        flags = [*sources.nvcc_flags(tools.architectures, *hidden), *toolchain.compression(tools.nvcc)]
        return [*tools.nvcc.command, *_host(tools), *flags, *end]
    flags = sources.cxx_flags(*hidden)
    if tools.nvcc is not None:
        flags += [*sources.CUDA_FLAGS, f"-I{toolchain.toolkit(tools.nvcc) / 'include'}"]
    return [*tools.cxx.command, *flags, *end]


def _link(library: Library, objects: list[Path], made: Path, tools: Tools) -> list[str]:
    end = [*map(str, objects), "-o", str(made), f"-L{Path(torch.__file__).parent / 'lib'}"]
    end += [f"-l{name}" for name in library.against]
    flags = sources.link_flags(sources.folder())
    if tools.nvcc is None:
        return [*tools.cxx.command, "-shared", *flags, *end]
    flags = [part for flag in flags for part in ("-Xlinker", flag.removeprefix("-Wl,"))]
    return [*tools.nvcc.command, *_host(tools), "-shared", "-cudart=static", *flags, *end]


def _host(tools: Tools) -> list[str]:
    """Make nvcc use the C++ compiler that was chosen, not one that it finds."""
    return ["-ccbin", tools.cxx.command[0]]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        log = done.stderr + done.stdout
        telling = [line.strip() for line in log.splitlines() if "error" in line] or [f"exit status {done.returncode}"]
        raise BuildError(f"{Path(command[0]).name} failed: {telling[0]}", log)


def _tell(text: str) -> None:
    """A line for whoever waits, also where no logging was set up."""
    print(f"kdengine: {text}", file=sys.stderr, flush=True)
