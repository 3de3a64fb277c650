"""Build entry point: what is declarative stands in pyproject.toml; here the library is built, where that is possible.

With torch at hand (``pip install --no-build-isolation``, release builds) the wheel carries the compiled library.
Without it the wheel is pure Python and carries the sources, which are compiled when they are first used.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"


def load(name: str) -> ModuleType:
    """A module of kdengine.ops by its path: importing it by its name would import torch."""
    spec = spec_from_file_location(f"kdengine_{name}", ROOT / "kdengine" / "ops" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sources, toolchain = load("sources"), load("toolchain")


class BuildWithSources(build_py):
    """Puts csrc into the package, from where an installed kdengine compiles it."""

    def run(self) -> None:
        """Copy the modules, then the sources."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "kdengine", "_csrc")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(CSRC, target)


class AnyPython(bdist_wheel):
    """A wheel for every Python: the library has no Python in it."""

    def get_tag(self) -> tuple[str, str, str]:
        """The platform alone is particular."""
        return "py3", "none", super().get_tag()[2]


def libraries() -> tuple[list[Extension], type[build_ext]]:
    """The libraries that can be built here, and the command that builds them."""
    try:
        import torch
    except ImportError:
        return [], build_ext
    if toolchain.cxx() is None:
        print("kdengine: no C++ compiler here: the wheel gets no compiled library", file=sys.stderr)
        return [], build_ext
    nvcc = cuda_compiler(torch.version.cuda)
    if nvcc is not None:  # torch takes the folder above a script that calls nvcc for it
        os.environ.setdefault("CUDA_HOME", str(toolchain.toolkit(nvcc)))
    from torch.utils.cpp_extension import BuildExtension

    class BuildLibraries(BuildExtension):
        """Builds nothing for an editable install: what is compiled at first use follows the sources."""

        def run(self) -> None:
            if self.editable_mode:
                self.extensions = []
            super().run()

    folder = Path(torch.__file__).parent
    found = [processors(folder)] if nvcc is None else [processors(folder), gpus(folder, nvcc)]
    return found, BuildLibraries.with_options(no_python_abi_suffix=True)


def cuda_compiler(torch_cuda: str | None) -> Any:
    """The compiler of the CUDA library; None where that is not built."""
    return None if torch_cuda is None or os.environ.get("KDENGINE_CUDA") == "0" else toolchain.nvcc()


def processors(torch: Path) -> Extension:
    """The library for processors."""
    return extension(sources.CPU, [torch], {"cxx": flags(torch)})


def gpus(torch: Path, nvcc: Any) -> Extension:
    """The library for CUDA."""
    architectures = toolchain.supported(nvcc, toolchain.listed() or sources.ARCHITECTURES)
    cuda_flags = [*sources.nvcc_flags(architectures, CSRC, torch / "include"), *toolchain.compression(nvcc)]
    compile_args = {"cxx": [*flags(torch), *sources.CUDA_FLAGS], "nvcc": cuda_flags}
    return extension(sources.CUDA, [torch, toolchain.toolkit(nvcc)], compile_args, sources.CUDA_RUNTIME)


def flags(torch: Path) -> list[str]:
    """Flags for a C++ source."""
    return sources.cxx_flags(CSRC, torch / "include")


def extension(
    library: Any, homes: list[Path], compile_args: dict[str, list[str]], more: Sequence[str] = ()
) -> Extension:
    """A library as setuptools knows it; the homes are folders with `include` and `lib` in them."""
    places = [home / name for home in homes for name in ("lib", "lib64") if (home / name).is_dir()]
    return Extension(
        f"kdengine.ops.{library.stem}",
        [str(path.relative_to(ROOT)) for path in library.sources(CSRC)],
        include_dirs=[str(home / "include") for home in homes],
        library_dirs=list(map(str, places)),
        libraries=[*library.against, *more],
        extra_compile_args=compile_args,
        extra_link_args=sources.link_flags(CSRC),
        depends=[str(path.relative_to(ROOT)) for path in CSRC.rglob("*.h")],
        py_limited_api=True,  # else torch_python is linked
        language="c++",
    )


extensions, build_extensions = libraries()
setup(
    ext_modules=extensions,
    cmdclass={"build_py": BuildWithSources, "build_ext": build_extensions, "bdist_wheel": AnyPython},
)
