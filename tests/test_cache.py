"""Where the cache is, and what is said where it cannot be."""

import os
from pathlib import Path

import pytest

from kdengine import _cache


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KDENGINE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_first_that_is_named_holds(home, monkeypatch):
    assert _cache.cache_folder() == home / ".cache" / "kdengine"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert _cache.cache_folder() == Path("/elsewhere/kdengine")
    monkeypatch.setenv("KDENGINE_CACHE", "~/mine")
    assert _cache.cache_folder() == home / "mine"
    monkeypatch.setenv("KDENGINE_CACHE", "")
    assert _cache.cache_folder() == Path("/elsewhere/kdengine")


def test_a_home_that_cannot_be_written_is_told_with_the_variable(home, monkeypatch):
    assert _cache.why_unwritable(home / ".cache" / "kdengine") is None
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != home)  # root may write anywhere
    assert "KDENGINE_CACHE" in _cache.why_unwritable(home / ".cache" / "kdengine")


def test_a_file_in_the_place_of_the_cache_is_told(home):
    (home / ".cache").write_text("")
    reason = _cache.why_unwritable(home / ".cache" / "kdengine")
    assert f"{home / '.cache'} is no folder" in reason
    assert "KDENGINE_CACHE" in reason
