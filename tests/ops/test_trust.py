"""A library that another user could have made or changed is not loaded, and pure PyTorch computes instead."""

import os
import stat

import pytest

from kdengine.ops import build, library, trust
from kdengine.ops.build import BuildError
from kdengine.ops.sources import CPU

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no such owners here")
STRANGER = 4321


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A library in a cache of this user's own."""
    monkeypatch.setenv("KDENGINE_LIBRARIES", str(tmp_path / "libraries"))
    place = build.place(CPU, build.Tools(build.toolchain.Compiler(("c++",), "c++ 1")))
    monkeypatch.setattr(build, "find_tools", lambda _: build.Tools(build.toolchain.Compiler(("c++",), "c++ 1")))
    for folder in (place.parent.parent, place.parent):
        folder.mkdir(mode=0o755)
    place.write_bytes(b"no library")
    place.chmod(0o755)
    return place


@pytest.fixture
def give(monkeypatch):
    """Give a path to another user; where this one may not, be another user instead."""

    def to_stranger(path):
        if os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: STRANGER)

    return to_stranger


def parts(path):
    return {"file": path, "folder": path.parent, "folder of all": path.parent.parent}


def test_the_users_own_is_loaded(kept):
    assert build.cached(CPU) == kept
    assert build.build(CPU) == kept
    assert trust.distrust(kept) is None


@pytest.mark.parametrize("part", ["file", "folder", "folder of all"])
def test_what_belongs_to_another_user_is_refused_with_a_way_out(kept, give, part):
    give(parts(kept)[part])
    assert build.cached(CPU) is None
    with pytest.raises(BuildError, match=r"belongs to user .*name a folder of your own with KDENGINE_LIBRARIES"):
        build.build(CPU)
    assert "belongs to user" in build.refused(CPU)


@pytest.mark.parametrize("part", ["file", "folder", "folder of all"])
@pytest.mark.parametrize("right", [stat.S_IWOTH, stat.S_IWGRP])
def test_what_others_may_write_is_refused(kept, part, right):
    path = parts(kept)[part]
    if right == stat.S_IWGRP and os.geteuid() == 0:
        os.chown(path, 0, STRANGER)
    elif right == stat.S_IWGRP and os.getegid() in (0, os.geteuid()):
        pytest.skip("a private group")
    path.chmod(path.stat().st_mode | right)
    assert build.cached(CPU) is None
    with pytest.raises(BuildError, match="can be written by other users"):
        build.build(CPU)


def test_a_folder_that_all_share_but_each_for_himself_is_no_danger(kept):
    kept.parent.parent.chmod(0o1777)  # as /tmp
    assert build.cached(CPU) == kept


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_a_private_group_is_nobody_else(kept, monkeypatch):
    for path in parts(kept).values():
        os.chown(path, STRANGER, STRANGER)
        path.chmod(0o775)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert build.cached(CPU) == kept


def test_what_is_made_here_is_not_left_open_by_a_lenient_umask(tmp_path, monkeypatch):
    monkeypatch.setenv("KDENGINE_LIBRARIES", str(tmp_path / "cache" / "libraries"))
    monkeypatch.setattr(build, "find_tools", lambda _: build.Tools(build.toolchain.Compiler(("c++",), "c++ 1")))

    def compile_nothing(_library, _tools, work):
        (work / CPU.file).write_bytes(b"")
        (work / CPU.file).chmod(0o777)
        return work / CPU.file

    monkeypatch.setattr(build, "compile_library", compile_nothing)
    before = os.umask(0)
    try:
        made = build.build(CPU)
    finally:
        os.umask(before)
    assert build.cached(CPU) == made
    assert all(not path.stat().st_mode & 0o022 for path in parts(made).values())


def test_the_operator_computes_without_the_library_and_says_why(kept, give, monkeypatch):
    from kdengine.ops import backend

    for name in ("_loaded", "_missing"):
        monkeypatch.setattr(library, name, {})
    monkeypatch.setattr(library, "_sought", set())
    monkeypatch.setattr(library, "shipped", lambda _: None)
    monkeypatch.delenv("KDENGINE_BACKEND", raising=False)
    give(kept)
    assert "belongs to user" in backend.backend_info().reason
    with pytest.warns(UserWarning, match="pure PyTorch.*belongs to user"):
        assert backend._obtain(CPU) is False


def test_without_a_home_there_is_no_cache_and_no_crash(monkeypatch):
    for name in ("KDENGINE_LIBRARIES", "KDENGINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", no_home)
    monkeypatch.setattr(build, "find_tools", lambda _: build.Tools(build.toolchain.Compiler(("c++",), "c++ 1")))
    assert build.cached(CPU) is None
    with pytest.raises(BuildError, match=r"no home directory.*KDENGINE_CACHE"):
        build.build(CPU)
