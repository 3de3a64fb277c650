"""Compiling ahead of the first use."""

import pytest

from kdengine.ops import build, toolchain


@pytest.mark.skipif(toolchain.cxx() is None, reason="there is no C++ compiler here")
def test_build_tells_where_the_library_lies(process):
    done = process("build", "--no-cuda")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{build.libraries_folder()}/cpu-")
    assert "instruction set" in done.stdout
    assert "compiling" not in done.stderr  # it is there already


def test_build_says_what_is_missing(process, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("KDENGINE_LIBRARIES", str(tmp_path / "empty"))
    done = process("build")
    assert done.returncode == 2
    assert done.stderr == (
        "error: the cpu library cannot be had: there is no C++ compiler here (CXX=no-such-compiler does not answer)\n"
    )
