"""The project as somebody else has it: a copy of its files, and packages that are built from it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests import session

ROOT = Path(__file__).parents[2]
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
FOLDERS = ("kdengine", "csrc")


def copy(folder: Path) -> Path:
    """Copy what a package is built from, so that building leaves nothing in the checkout."""
    folder.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def without_torch(folder: Path) -> dict[str, str]:
    """An environment in which torch cannot be imported, as in a build of its own."""
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('there is no torch here')\n")
    return {"PYTHONPATH": str(folder)}


def wheel(source: Path, out: Path, **env: str) -> Path:
    """Build a wheel with what this environment has, without a network."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    run([*command, "-w", str(out), str(source)], source, **env)
    (built,) = out.glob("*.whl")
    return built


def shared_wheel(factory: pytest.TempPathFactory, architectures: str | None = None) -> Path:
    """A wheel that was built where torch is, once for all test processes: it takes minutes with the CUDA library.

    `architectures` leaves that library to fewer GPUs, such as "9.0", which takes a fifth of the time.
    """
    folder = session.folder(factory) / f"shared-wheel-{architectures}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            env = {} if architectures is None else {"TORCH_CUDA_ARCH_LIST": architectures}
            wheel(copy(factory.mktemp("wheel") / "source"), folder, **env)
        return next(folder.glob("*.whl"))


def run(command: list[str], folder: Path, **env: str) -> str:
    """Carry out a command in a folder; what it printed.

    Raises:
        AssertionError: it failed; the message has all that it said.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("KDENGINE", "PYTEST", "PYTHON"))}
    done = subprocess.run(
        command, cwd=folder, env=own | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout
