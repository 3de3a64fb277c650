"""What the compiled libraries are made of: their sources and how these are compiled.

`setup.py` reads this module by its path, where neither kdengine nor torch can be imported: standard library only.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

FLAGS = (
    "-O3",
    "-std=c++17",
    "-DNDEBUG",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # the stable interface as of torch 2.10, the oldest supported
)
CUDA_FLAGS = (
    "-DUSE_CUDA",  # torch's headers hide the current stream without it
    # BuildExtension forbids arithmetic of half-precision types; the library is not compiled in two ways.
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_HALF2_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
)
CUDA_RUNTIME = ("cudart_static", "rt", "dl", "pthread")
"""Linked statically: no two versions of torch bring the same runtime."""

ARCHITECTURES = ("80", "86", "89", "90", "120")
"""The compute capabilities that a release has machine code for."""


@dataclass(frozen=True)
class Library:
    """One of the two libraries: that for processors, which defines the operators, and that for CUDA.

    Attributes:
        name: `"cpu"` or `"cuda"`.
        patterns: which files of `csrc` it is compiled from.
        without: which of these are left out again.
        against: torch's libraries that it is linked with.
    """

    name: str
    patterns: tuple[str, ...]
    without: str
    against: tuple[str, ...]

    @property
    def stem(self) -> str:
        """The name of the file without its suffix."""
        return f"libkdengine_{self.name}"

    @property
    def file(self) -> str:
        """The name of the file."""
        return self.stem + (".dylib" if sys.platform == "darwin" else ".so")

    def sources(self, csrc: Path) -> list[Path]:
        """The files to compile, in a fixed order."""
        found = {path for pattern in self.patterns for path in csrc.glob(pattern)}
        return sorted(found - set(csrc.glob(self.without)))


CPU = Library("cpu", ("*.cpp", "cpu/*.cpp"), "*_cuda.cpp", ("torch_cpu",))
CUDA = Library("cuda", ("*.cpp", "cuda/*.cpp", "cuda/*.cu"), "ops.cpp", ("torch_cuda", "torch_cpu"))


def folder() -> Path:
    """Where the sources lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_csrc"
    return installed if installed.is_dir() else package.parent / "csrc"


def digest(library: Library, csrc: Path) -> str:
    """A hash of everything that a library may be compiled from, headers included; that for processors takes no CUDA."""
    content = sha256()
    for path in sorted(path for path in csrc.rglob("*") if path.is_file()):
        name = path.relative_to(csrc).as_posix()
        if library is CPU and (name.startswith("cuda/") or path.match(CPU.without)):
            continue
        content.update(f"\0{name}\0".encode())
        content.update(path.read_bytes())
    return content.hexdigest()


def host_flags(*hidden: Path) -> list[str]:
    """Flags of the C++ compiler, also behind nvcc; the hidden folders' names stay out of the library's messages."""
    return ["-fPIC", "-fvisibility=hidden", *(f"-ffile-prefix-map={folder}/=" for folder in hidden)]


def cxx_flags(*hidden: Path) -> list[str]:
    """Flags for a C++ source."""
    return [*FLAGS, *host_flags(*hidden)]


def nvcc_flags(architectures: Iterable[str], *hidden: Path) -> list[str]:
    """Flags for a CUDA source: machine code for each architecture, and PTX of the newest for chips to come."""
    known = sorted(set(architectures), key=int)
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in known]
    code.append(f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}")
    host = [part for flag in host_flags(*hidden) for part in ("-Xcompiler", flag)]
    named = f'-DKDENGINE_CUDA_ARCHITECTURES="{" ".join(known)}"'  # what the library tells of itself
    return [*FLAGS, *CUDA_FLAGS, named, *host, *code]


def link_flags(csrc: Path) -> list[str]:
    """Flags of the linker: stripped, nothing exported and nothing missing."""
    if sys.platform == "darwin":
        return ["-Wl,-x"]
    return ["-Wl,-s", "-Wl,-z,defs", f"-Wl,--version-script={csrc / 'exports.map'}"]
