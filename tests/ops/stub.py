"""A small library with the names of the real one, which is compiled in seconds, and processes that use it."""

import os
import subprocess
import sys
from pathlib import Path

from kdengine.ops import sources

OPERATORS = r"""
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <string>

#include "kernel.h"

namespace {

torch::stable::Tensor kd_loss(const torch::stable::Tensor& student) { return torch::stable::clone(student); }

std::string cpu_isa() {
  const char* wanted = std::getenv("KDENGINE_CPU_ISA");
  const std::string isa = wanted == nullptr ? "portable" : wanted;
  STD_TORCH_CHECK(isa == "portable", "KDENGINE_CPU_ISA=", isa, ": this processor does not have it");
  return isa;
}

}  // namespace

STABLE_TORCH_LIBRARY(kdengine, library) {
  library.def("kd_loss(Tensor student) -> Tensor");
  library.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(kdengine, CPU, library) { library.impl("kd_loss", TORCH_BOX(&kd_loss)); }

STABLE_TORCH_LIBRARY_IMPL(kdengine, CompositeExplicitAutograd, library) {
  library.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
"""

KERNEL = '#include "../kernel.h"\nint kernel() { return 1; }\n'

CODE = """
import pathlib, sys
from kdengine.ops import sources
sources.folder = lambda: pathlib.Path({csrc!r})
from kdengine.ops import backend, backend_info, build, library
{body}
"""


def write(csrc: Path, operators: str = OPERATORS) -> Path:
    """Write the sources into a folder."""
    (csrc / "cpu").mkdir(parents=True)
    (csrc / "ops.cpp").write_text(operators)
    (csrc / "kernel.h").write_text("int kernel();\n")
    (csrc / "cpu" / "kernel.cpp").write_text(KERNEL)
    (csrc / "exports.map").write_text((sources.folder() / "exports.map").read_text())
    return csrc


class Machine:
    """A machine with sources, a cache and perhaps a compiler.

    Args:
        folder: where these lie.
        operators: the source that registers the operators.
    """

    def __init__(self, folder: Path, operators: str = OPERATORS) -> None:
        self.folder = folder
        self.csrc = write(folder / "csrc", operators)
        self.cache = folder / "libraries"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("KDENGINE")}
        self.env |= {"KDENGINE_LIBRARIES": str(self.cache), "OMP_NUM_THREADS": "1"}

    def start(self, body: str, **env: str) -> subprocess.Popen:
        """Begin to carry out Python code in a process of its own."""
        command = [sys.executable, "-c", CODE.format(csrc=str(self.csrc), body=body)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=self.env | env, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def run(self, body: str, **env: str) -> tuple[str, str]:
        """Carry out Python code; what it printed, on both streams."""
        process = self.start(body, **env)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out.strip(), err

    def libraries(self) -> list[Path]:
        """What was compiled."""
        return sorted(self.cache.glob("*/libkdengine_*"))

    def compiler(self, lines: str) -> str:
        """A C++ compiler that does something else first."""
        script = self.folder / "compiler"
        script.write_text(f'#!/bin/sh\ncase "$1" in --version) exec g++ --version;; esac\n{lines}\nexec g++ "$@"\n')
        script.chmod(0o755)
        return str(script)
