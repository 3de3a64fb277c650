"""The choice between the compiled library and pure PyTorch."""

import pytest
import torch

from kdengine.ops import backend, backend_info, build, library
from kdengine.ops.build import BuildError
from kdengine.ops.library import Loaded, UnavailableError
from kdengine.ops.sources import CPU, CUDA


class Libraries:
    """Stands in for what can be had in this process."""

    def __init__(self):
        self.there, self.asked = {"cpu", "cuda"}, []

    def obtain(self, which):
        self.asked.append(which.name)
        if which.name not in self.there:
            raise UnavailableError("no compiler")
        return self.loaded(which)

    def loaded(self, which):
        return Loaded(f"/somewhere/{which.file}", "came from somewhere") if which.name in self.there else None


@pytest.fixture
def libraries(monkeypatch):
    """A process in which nothing was decided yet."""
    found = Libraries()
    monkeypatch.setattr(library, "obtain", found.obtain)
    monkeypatch.setattr(library, "loaded", found.loaded)
    monkeypatch.setattr(library, "instruction_set", lambda: "avx2")
    monkeypatch.setattr(library, "architectures", lambda: ("80", "90"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for state in ("_compiled", "_compiled_cuda"):
        monkeypatch.setattr(backend, state, {})
    for name in ("KDENGINE_BACKEND", "KDENGINE_CPU_ISA", "KDENGINE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("wanted", [None, "", "auto", "compiled"])
def test_the_library_is_used_if_it_can_be_had(libraries, monkeypatch, wanted):
    if wanted is not None:
        monkeypatch.setenv("KDENGINE_BACKEND", wanted)
    assert backend.compiled()
    assert backend.compiled_cuda()
    assert backend_info().name == "compiled"


def test_the_decision_is_taken_once(libraries):
    assert all(backend.compiled() for _ in range(3))
    assert libraries.asked == ["cpu"]


def test_without_the_library_pure_pytorch_is_used_and_warned_of_once(libraries):
    libraries.there = set()
    with pytest.warns(UserWarning, match="kd_loss uses pure PyTorch, which is slower: no compiler") as warned:
        assert [backend.compiled() for _ in range(3)] == [False] * 3
    assert len(warned) == 1


def test_without_the_cuda_library_pure_pytorch_is_used_for_cuda_tensors_only(libraries):
    libraries.there = {"cpu"}
    with pytest.warns(UserWarning, match="for CUDA tensors"):
        assert not backend.compiled_cuda()
    assert backend.compiled()
    assert backend_info().cuda_library is None


def test_python_asks_for_pure_pytorch_and_no_library_is_looked_for(libraries, monkeypatch):
    monkeypatch.setenv("KDENGINE_BACKEND", "python")
    assert not backend.compiled()
    assert not backend.compiled_cuda()
    assert libraries.asked == []
    assert backend_info() == backend.BackendInfo("python", "KDENGINE_BACKEND=python asks for pure PyTorch")


def test_compiled_refuses_to_do_without_the_library_every_time(libraries, monkeypatch):
    libraries.there = set()
    monkeypatch.setenv("KDENGINE_BACKEND", "compiled")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="KDENGINE_BACKEND=compiled, but no compiler"):
            backend.compiled()


def test_a_change_of_the_variable_is_noticed(libraries, monkeypatch):
    seen = []
    for wanted in ("auto", "python", "compiled", "python"):
        monkeypatch.setenv("KDENGINE_BACKEND", wanted)
        seen.append(backend.compiled())
    monkeypatch.delenv("KDENGINE_BACKEND")
    assert [*seen, backend.compiled()] == [True, False, True, False, True]


def test_an_unknown_backend_is_refused_with_the_nearest(libraries, monkeypatch):
    monkeypatch.setenv("KDENGINE_BACKEND", "pyhton")
    for refused in (backend.compiled, backend_info):
        with pytest.raises(ValueError, match=r"KDENGINE_BACKEND must be one of .* did you mean 'python'"):
            refused()


def test_an_unknown_instruction_set_is_refused_with_the_nearest(libraries, monkeypatch):
    monkeypatch.setenv("KDENGINE_CPU_ISA", "avx-512")
    for refused in (backend.compiled, backend_info):
        with pytest.raises(ValueError, match=r"KDENGINE_CPU_ISA must be one of .* did you mean 'avx512'"):
            refused()


def test_an_instruction_set_that_is_not_there_is_refused_every_time(libraries, monkeypatch):
    def refuse():
        raise ValueError("KDENGINE_CPU_ISA=avx512: this processor does not have it")

    monkeypatch.setattr(library, "instruction_set", refuse)
    for _ in range(2):
        with pytest.raises(ValueError, match="does not have it"):
            backend.compiled()


def test_cuda_can_be_left_out(libraries, monkeypatch):
    monkeypatch.setenv("KDENGINE_CUDA", "0")
    assert backend.compiled()
    assert not backend.compiled_cuda()
    assert libraries.asked == ["cpu"]
    assert "KDENGINE_CUDA=0" in backend_info().cuda_reason


def test_the_information_names_libraries_and_what_they_compute_with(libraries):
    info = backend_info()
    assert info.reason == "the library came from somewhere"
    assert info.library.endswith(CPU.stem + info.library[-3:])
    assert info.isa == "avx2"
    assert info.cuda_library.startswith(f"/somewhere/{CUDA.stem}")
    assert info.cuda_archs == ("80", "90")


def test_the_information_compiles_nothing_and_says_what_the_first_use_will_do(libraries, monkeypatch):
    libraries.there = set()
    tools = build.Tools(build.Compiler(("g++",), "g++ 12.2"))
    monkeypatch.setattr(build, "find_tools", lambda _: tools)
    assert backend_info().name == "python"
    assert backend_info().reason == "not compiled yet: the first use does it (g++ 12.2), or kdengine build ahead"
    assert libraries.asked == []


def test_the_information_says_what_is_missing(libraries, monkeypatch):
    def nothing(_):
        raise BuildError("there is no C++ compiler here")

    libraries.there = set()
    monkeypatch.setattr(build, "find_tools", nothing)
    assert backend_info().reason == "there is no C++ compiler here"


def test_a_graph_takes_the_decision_in_as_a_constant(libraries):
    @torch.compile(fullgraph=True, backend="eager")
    def double_if_compiled(x):
        return x * 2 if backend.compiled() else x

    assert double_if_compiled(torch.ones(())) == 2
    assert libraries.asked == ["cpu"]
