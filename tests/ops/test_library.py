"""Finding and loading the compiled library."""

import shutil

import pytest

from kdengine.ops import toolchain
from tests.ops.stub import Machine

pytestmark = pytest.mark.skipif(toolchain.cxx() is None, reason="there is no C++ compiler here")


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.run("backend.compiled()")
    return machine


def shipped(path):
    """Code that takes a file for the library of the installation."""
    return f"library.shipped = lambda which: pathlib.Path({str(path)!r}) if which.name == 'cpu' else None\n"


def test_what_came_with_the_installation_is_loaded_first(machine, tmp_path):
    (path,) = machine.libraries()
    copy = shutil.copy(path, tmp_path)
    out, _ = machine.run(shipped(copy) + "print(backend.compiled(), backend_info().library, backend_info().reason)")
    assert out == f"True {copy} the library came with this installation"


def test_what_does_not_load_here_gives_way_to_what_was_compiled_here(machine, tmp_path):
    (tmp_path / "foreign.so").write_bytes(b"\x7fELF, but not for this system")
    out, err = machine.run(shipped(tmp_path / "foreign.so") + "print(backend.compiled(), backend_info().reason)")
    assert out == "True the library was compiled on this machine"
    assert err == ""


def test_a_damaged_library_in_the_cache_is_named(machine, tmp_path):
    (path,) = machine.libraries()
    damaged = tmp_path / path.relative_to(machine.cache)
    damaged.parent.mkdir()
    damaged.write_bytes(b"damaged")
    out, err = machine.run("print(backend.compiled())", KDENGINE_LIBRARIES=str(tmp_path))
    assert out == "False"
    assert f"{damaged} cannot be loaded" in err


def test_the_instruction_set_that_is_asked_for_is_used_or_refused(machine):
    assert machine.run("print(backend_info().isa)", KDENGINE_CPU_ISA="portable")[0] == "portable"
    refused = "try: backend.compiled()\nexcept ValueError as error: print(error)"
    out, _ = machine.run(refused, KDENGINE_CPU_ISA="avx512")
    assert out == "KDENGINE_CPU_ISA=avx512: this processor does not have it"
