import errno
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from kdengine import _files as files

resource = pytest.importorskip("resource")


@contextmanager
def no_file_above(size):
    """Let every write beyond so many bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def abandoned(parent, pid, host=files._HOST, name="run"):
    path = parent / f"{files.TEMPORARY_PREFIX}{host}-{pid}-00000000-{name}"
    path.mkdir()
    (path / "half").write_bytes(b"written")
    return path


def a_dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_written_file_has_the_content_and_leaves_nothing_beside_it(tmp_path):
    files.write_bytes(tmp_path / "a", b"\x00\xff")
    files.write_text(tmp_path / "b", "größe\r\n")
    files.write_json(tmp_path / "c", {"x": [1, None]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "größe\r\n".encode()
    assert json.loads((tmp_path / "c").read_text()) == {"x": [1, None]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_an_old_file_is_replaced(tmp_path):
    files.write_text(tmp_path / "a", "a long first text")
    files.write_text(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "second"


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "usual").touch()
    files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_refuses_nan_before_anything_is_touched(tmp_path):
    files.write_json(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a", {"loss": float("nan")})
    assert (tmp_path / "a").read_text() == "1\n"


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "big"
    files.write_bytes(path, b"old")
    with no_file_above(10_000), pytest.raises(OSError, match=r"/big'") as caught:
        files.write_bytes(path, bytes(100_000))
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.write_bytes(tmp_path / "absent" / "a", b"")


def test_everything_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    real_fsync = os.fsync

    def fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_ino))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    real_path_rename = files.Path.rename
    monkeypatch.setattr(
        files.Path, "rename", lambda self, to: (events.append(("rename", to)), real_path_rename(self, to))[1]
    )
    target = tmp_path / "run"
    with files.publish_directory(target) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "a").write_text("a")
        (directory / "b").write_text("b")
    renamed = events.index(("rename", target))
    before = {inode for kind, inode in events[:renamed] if kind == "fsync"}
    assert {path.stat().st_ino for path in (target, *target.rglob("*"))} <= before
    assert ("fsync", tmp_path.stat().st_ino) in events[renamed:]


def test_a_directory_is_published_under_missing_parents(tmp_path):
    target = tmp_path / "runs" / "r18"
    with files.publish_directory(target) as directory:
        assert directory.name.startswith(".tmp-")
        assert directory.parent == target.parent
        assert not target.exists()
        (directory / "a").write_text("a")
    assert (target / "a").read_text() == "a"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_directory_is_not_published(tmp_path, error):
    def interrupted():
        with files.publish_directory(tmp_path / "run") as directory:
            (directory / "a").write_text("a")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_refused_even_if_it_appears_late(tmp_path):
    target = tmp_path / "run"
    with pytest.raises(FileExistsError, match="run exists already"), files.publish_directory(target):
        target.mkdir()
    with pytest.raises(FileExistsError, match="run exists already"), files.publish_directory(target):
        pytest.fail("must not begin")
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_is_replaced_on_demand(tmp_path):
    for content in ("old", "new"):
        with files.publish_directory(tmp_path / "run", replace=True) as directory:
            (directory / content).touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "new"]


def test_a_directory_is_discarded_where_the_disk_is_too_full_to_flush(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "step").mkdir()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left .*/step'"):
        files.discard_directory(tmp_path / "step")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    def refused(name, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").touch()
    monkeypatch.setattr(os, "unlink", refused)
    with pytest.raises(PermissionError, match=r"/step'"):
        files.discard_directory(tmp_path / "step")


def test_sweep_removes_what_dead_runs_left(tmp_path):
    dead = abandoned(tmp_path, a_dead_pid())
    earlier_life_of_this_pid = abandoned(tmp_path, os.getpid())
    assert files.sweep(tmp_path) == sorted([dead, earlier_life_of_this_pid])
    assert list(tmp_path.iterdir()) == []


def test_sweep_leaves_what_is_in_use(tmp_path):
    (tmp_path / "step-00000001").mkdir()
    other_process = abandoned(tmp_path, os.getppid())
    other_machine = abandoned(tmp_path, a_dead_pid(), host="elsewhere")
    with files.publish_directory(tmp_path / "run") as ours:
        assert files.sweep(tmp_path) == []
        assert ours.exists()
    assert other_process.exists()
    assert other_machine.exists()
    assert (tmp_path / "step-00000001").exists()


def test_sweep_removes_what_is_older_than_a_day_whoever_made_it(tmp_path):
    path = abandoned(tmp_path, 1, host="elsewhere")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(path, (long_ago, long_ago))
    assert files.sweep(tmp_path) == [path]


def test_sweep_removes_what_was_replaced_only_where_the_new_one_stands(tmp_path):
    for name in ("one", "two"):
        files.replaced(tmp_path / name).mkdir()
    (tmp_path / "two").mkdir()
    assert files.sweep(tmp_path) == [files.replaced(tmp_path / "two")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".replaced-one", "two"]


def test_sweep_of_a_missing_directory_is_nothing(tmp_path):
    assert files.sweep(tmp_path / "absent") == []


def test_sha256_of_a_file(tmp_path):
    files.write_bytes(tmp_path / "a", b"abc")
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
