"""Compiling at first use: once for all processes, and without harm where it does not work."""

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kdengine.ops import build, sources, toolchain
from kdengine.ops.build import BuildError, Tools
from kdengine.ops.sources import CPU, CUDA
from kdengine.ops.toolchain import Compiler
from tests.ops.stub import Machine

IMPORT = "from kdengine.ops.sources import CPU"
USE = "print(backend.compiled(), backend_info().name)"
needs_compiler = pytest.mark.skipif(toolchain.cxx() is None, reason="there is no C++ compiler here")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """This process on a machine with an empty cache, where compiling takes no time: the library has no operators."""
    machine = Machine(tmp_path, "int operators() { return 0; }\n")
    monkeypatch.setattr(sources, "folder", lambda: machine.csrc)
    monkeypatch.setenv("KDENGINE_LIBRARIES", str(machine.cache))
    return machine


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A machine on which the library was used once, and what was said meanwhile."""
    machine = Machine(tmp_path_factory.mktemp("used"))
    use = "import torch; print(backend.compiled(), torch.ops.kdengine.kd_loss(torch.ones(2)).sum().item())"
    machine.said = machine.run(use)
    return machine


@needs_compiler
def test_the_first_use_compiles_and_says_so(used):
    out, err = used.said
    assert out == "True 2.0"
    assert re.fullmatch(r"kdengine: compiling the loss kernels with .*\nkdengine: compiled in \d+ s: .*\n", err)
    assert len(used.libraries()) == 1


@needs_compiler
def test_the_next_use_is_silent_and_needs_no_compiler(used):
    assert used.run(USE, CXX="no-such-compiler") == ("True compiled", "")


def test_without_a_compiler_pure_pytorch_is_used_with_one_warning(machine):
    out, err = machine.run(f"{USE}; {USE}; print(backend_info().reason)", CXX="no-such-compiler")
    assert out.splitlines()[:2] == ["False python"] * 2
    assert out.splitlines()[2] == "there is no C++ compiler here (CXX=no-such-compiler does not answer)"
    assert err.count("UserWarning: kd_loss uses pure PyTorch, which is slower: there is no C++ compiler") == 1


@needs_compiler
def test_a_failure_is_one_warning_and_the_computation_goes_on_in_python(machine):
    (machine.csrc / "ops.cpp").write_text("int x = ;\n")
    out, err = machine.run(
        "import torch\n"
        "from kdengine.ops import kd_loss\n"
        "for _ in range(3): backend.compiled(); loss = kd_loss(torch.ones(2, 3), torch.ones(2, 3))\n"
        "print(loss.item(), backend_info().name)"
    )
    assert out == "0.0 python"
    assert err.count("uses pure PyTorch") == 1
    assert "ops.cpp:1:9: error: " in err
    (log,) = machine.cache.glob("*/build.log")
    assert str(log) in err
    assert "int x = ;" in log.read_text()


@needs_compiler
def test_processes_that_come_at_the_same_time_compile_once(machine):
    calls = machine.folder / "calls"
    compiler = machine.compiler(f'echo "$*" >> {calls}; sleep 1')
    processes = [machine.start(f"{IMPORT}; print(build.build(CPU))", CXX=compiler) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert {out.strip() for out, _ in said} == {str(path) for path in machine.libraries()}
    assert sum("compiled in" in err for _, err in said) == 1
    assert len(calls.read_text().splitlines()) == 3  # two sources and the linker


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="kills a process group")
def test_a_killed_build_blocks_nobody_and_its_rest_is_removed(machine, monkeypatch):
    reached = machine.folder / "reached"
    compiler = machine.compiler(f"if [ ! -e {reached} ]; then touch {reached}; sleep 60; fi")
    killed = machine.start(f"import os; os.setpgrp(); {IMPORT}; build.build(CPU)", CXX=compiler)
    deadline = time.monotonic() + 60
    while not reached.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert list(machine.cache.glob("*/work-*"))
    monkeypatch.setenv("CXX", compiler)
    assert build.build(CPU) == machine.libraries()[0]
    assert not list(machine.cache.glob("*/work-*"))


@needs_compiler
def test_who_waited_for_a_failure_does_not_repeat_it(machine, monkeypatch, capfd):
    (machine.csrc / "ops.cpp").write_text("int x = ;\n")
    monkeypatch.setenv("CXX", machine.compiler("sleep 1"))

    def attempt(_):
        with pytest.raises(BuildError, match=r"ops.cpp:1:9: error: "):
            build.build(CPU)

    with ThreadPoolExecutor() as pool:
        list(pool.map(attempt, range(3)))
    said = capfd.readouterr().err
    assert said.count("compiling the loss kernels with") == 1
    assert said.count("which compiles the loss kernels") == 2


@needs_compiler
def test_a_failure_is_tried_again_when_asked_again(machine, monkeypatch):
    monkeypatch.setenv("CXX", machine.compiler("echo error: the disk is full; exit 1"))
    with pytest.raises(BuildError, match="compiler failed: error: the disk is full"):
        build.build(CPU)
    machine.compiler("")
    assert build.build(CPU).is_file()


@needs_compiler
def test_changed_sources_are_another_library(machine):
    assert build.cached(CPU) is None
    first = build.build(CPU)
    assert build.cached(CPU) == first
    (machine.csrc / "kernel.h").write_text("int kernel();  // changed\n")
    assert build.cached(CPU) is None


def test_a_change_for_cuda_leaves_the_library_for_processors_as_it_is(machine):
    before = [sources.digest(library, machine.csrc) for library in (CPU, CUDA)]
    (machine.csrc / "cuda").mkdir()
    (machine.csrc / "cuda" / "kernel.cuh").touch()
    (machine.csrc / "ops_cuda.cpp").touch()
    after = [sources.digest(library, machine.csrc) for library in (CPU, CUDA)]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_another_compiler_makes_another_library(machine):
    one, other = (build.place(CPU, Tools(Compiler(("g++",), version))) for version in ("g++ 12", "g++ 13"))
    assert one != other


@needs_compiler
def test_a_cache_that_cannot_be_written_is_named(machine):
    machine.cache.write_text("a file")
    with pytest.raises(BuildError, match=rf"{machine.cache}/cpu-\w+-\w+ cannot be written: "):
        build.build(CPU)


@needs_compiler
def test_what_is_there_is_compiled_again_on_demand_only(machine, capfd):
    build.build(CPU)
    build.build(CPU)
    build.build(CPU, force=True)
    assert capfd.readouterr().err.count("compiled in") == 2


@needs_compiler
@pytest.mark.skipif(shutil.which("readelf") is None or shutil.which("nm") is None, reason="reads ELF files")
def test_a_library_exports_nothing_and_knows_nothing_of_the_machine(used):
    (path,) = used.libraries()
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True)
    assert symbols.stdout == ""
    dynamic = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in dynamic
    assert "PATH)" not in dynamic
    assert "python" not in dynamic
    content = path.read_bytes()
    for place in (used.csrc, Path(torch.__file__).parent):
        assert str(place).encode() not in content


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for name in ("KDENGINE_LIBRARIES", "KDENGINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert build.libraries_folder() == Path.home() / ".cache" / "kdengine" / "libraries"
    for name, below in (
        ("XDG_CACHE_HOME", "kdengine/libraries"),
        ("KDENGINE_CACHE", "libraries"),
        ("KDENGINE_LIBRARIES", ""),
    ):
        monkeypatch.setenv(name, str(tmp_path / name))
        assert build.libraries_folder() == tmp_path / name / below


def test_each_source_belongs_to_the_library_that_needs_it(tmp_path):
    names = ["ops.cpp", "ops_cuda.cpp", "arguments.cpp", "cpu/rows.cpp", "cuda/rows.cu", "cuda/launch.cpp"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def of(library):
        return {path.relative_to(tmp_path).as_posix() for path in library.sources(tmp_path)}

    assert of(CPU) == {"ops.cpp", "arguments.cpp", "cpu/rows.cpp"}
    assert of(CUDA) == {"ops_cuda.cpp", "arguments.cpp", "cuda/rows.cu", "cuda/launch.cpp"}


def test_cuda_code_is_made_for_each_architecture_and_for_chips_to_come():
    flags = sources.nvcc_flags(("120", "80"))
    code = [flag for flag in flags if flag.startswith("-gencode")]
    assert code == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_the_list_of_architectures_is_read_as_torch_reads_it(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert toolchain.listed() == ()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;8.0 12.0+PTX Ampere")
    assert toolchain.listed() == ("80", "90", "120")


def test_the_cuda_library_needs_a_cuda_build_of_torch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BuildError, match=r"torch .* is not a CUDA build"):
        build.find_tools(CUDA)


def test_the_cuda_library_needs_nvcc(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(toolchain, "cxx", lambda: Compiler(("g++",), "g++ 12"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError, match="no CUDA compiler here"):
        build.find_tools(CUDA)


@pytest.mark.skipif(toolchain.nvcc() is None, reason="there is no nvcc here")
def test_nvcc_is_asked_for_its_toolkit_and_what_it_knows():
    nvcc = toolchain.nvcc()
    assert (toolchain.toolkit(nvcc) / "bin" / "nvcc").is_file()
    assert toolchain.supported(nvcc, ("80", "999")) == ["80"]
