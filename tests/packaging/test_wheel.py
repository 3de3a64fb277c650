"""What an installation brings: the library where torch was at hand, else the sources."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

from kdengine.cli.scaffold import SUFFIX, TEMPLATES
from kdengine.ops import toolchain
from tests.packaging import project

needs_compiler = pytest.mark.skipif(toolchain.cxx() is None, reason="there is no C++ compiler here")

USE = """
import torch
from kdengine.ops import backend_info, kd_loss

student = torch.randn(4, 100, requires_grad=True)
kd_loss(student, torch.randn(4, 100), temperature=2.0).backward()
info = backend_info()
print(info.name, info.reason, info.library, student.grad.isfinite().all().item(), sep="; ")
"""


def names(path):
    with zipfile.ZipFile(path) as file:
        return set(file.namelist())


def test_without_torch_the_wheel_is_pure_and_carries_the_sources(tmp_path):
    hidden = project.without_torch(tmp_path / "hidden")
    wheel = project.wheel(project.copy(tmp_path / "source"), tmp_path / "out", **hidden)
    assert wheel.name.endswith("-py3-none-any.whl")
    inside = names(wheel)
    assert {"kdengine/_csrc/problem.h", "kdengine/_csrc/ops.cpp", "kdengine/_csrc/exports.map"} <= inside
    sources = {path.relative_to(project.ROOT / "csrc").as_posix() for path in project.ROOT.glob("csrc/**/*.*")}
    assert {name.removeprefix("kdengine/_csrc/") for name in inside if "_csrc" in name} == sources
    assert not any(name.endswith((".so", ".o", ".pyc")) for name in inside)
    assert "kdengine/py.typed" in inside
    assert {name for name in inside if name.endswith(SUFFIX)} == {
        f"kdengine/cli/templates/plugin/{path.relative_to(TEMPLATES).as_posix()}"
        for path in TEMPLATES.rglob(f"*{SUFFIX}")
    }


def test_the_source_distribution_carries_what_a_wheel_is_built_from(tmp_path):
    source = project.copy(tmp_path / "source")
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    project.run([sys.executable, "-c", code], source, **project.without_torch(tmp_path / "hidden"))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert {"setup.py", "csrc/problem.h", "csrc/cpu/cpu.h", "csrc/exports.map", "kdengine/ops/sources.py"} <= inside


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that was built where torch is; with the CUDA library, where nvcc is and torch is a CUDA build."""
    return project.shared_wheel(tmp_path_factory, architectures="9.0")


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """An environment of its own that borrows the packages of this one but kdengine."""
    folder = tmp_path_factory.mktemp("site")
    project.run([sys.executable, "-m", "venv", "--without-pip", "environment"], folder)
    own = next(folder.glob("environment/lib/python*/site-packages"))
    (own / "borrowed.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(own)
    return folder


@pytest.mark.slow
@needs_compiler
def test_with_torch_the_wheel_carries_the_library_for_every_python(wheel):
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", wheel.name)
    assert {"kdengine/ops/libkdengine_cpu.so", "kdengine/_csrc/ops.cpp"} <= names(wheel)
    assert wheel.stat().st_size < 10e6


@pytest.mark.slow
@needs_compiler
def test_the_library_of_a_wheel_is_used_and_nothing_is_compiled(site):
    out = project.run(
        ["environment/bin/python", "-W", "error", "-c", USE], site, KDENGINE_LIBRARIES="nowhere", CXX="no"
    )
    library = next(site.glob("environment/lib/python*/site-packages")) / "kdengine" / "ops" / "libkdengine_cpu.so"
    assert out == f"compiled; the library came with this installation; {library}; True\n"
    assert not (site / "nowhere").exists()


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(shutil.which("readelf") is None or shutil.which("nm") is None, reason="reads ELF files")
def test_the_libraries_of_a_wheel_export_nothing_and_find_torch_by_its_name(site):
    libraries = list(site.glob("environment/lib/python*/site-packages/kdengine/ops/*.so"))
    assert libraries
    for path in libraries:
        exported = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True)
        assert exported.stdout == ""
        dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
        needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
        torch = {"libtorch_cpu.so"} | ({"libtorch_cuda.so"} if "cuda" in path.name else set())
        assert torch <= needed
        assert not any(re.search("python|cudart|c10", name) for name in needed)
        assert "PATH)" not in dynamic
        assert str(project.ROOT).encode() not in path.read_bytes()


@pytest.mark.slow
def test_an_editable_installation_builds_no_library(tmp_path):
    source = project.copy(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    project.run([*command, "--target", str(tmp_path / "site"), "-e", str(source)], tmp_path)
    assert not list(source.rglob("*.so"))
    assert not (source / "kdengine" / "_csrc").exists()
