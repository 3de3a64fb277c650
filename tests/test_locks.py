"""One holder at a time, whoever dies, forks or comes too late."""

from __future__ import annotations

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from kdengine import _locks as locks
from kdengine._locks import Busy, locked

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.lock"


def in_a_child(act):
    """Fork, and let the child act until it is told to go on; its process and the pipe that tells it."""
    (ready, say_ready), (told, tell) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(tell)
            act(lambda: (os.write(say_ready, b"."), os.read(told, 1)))
        finally:
            os._exit(0)
    os.close(told)
    assert os.read(ready, 1) == b"."
    return child, tell


def hold(path):
    def act(wait):
        with locked(path):
            wait()

    return act


def test_another_process_is_refused_and_told_whose_it_is(path):
    child, tell = in_a_child(hold(path))
    with pytest.raises(Busy, match=rf"process {child} on .+ since \d{{4}}-"), locked(path):
        pytest.fail("two hold it")
    os.close(tell)
    os.waitpid(child, 0)
    with locked(path):
        assert path.exists()
    assert not path.exists()


def test_a_lock_ends_with_its_process_even_when_that_is_killed(path):
    child, tell = in_a_child(hold(path))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(tell)
    with locked(path):
        assert str(os.getpid()) in path.read_text()


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(path):
    def worker_outlives(wait):
        with locked(path):
            (up, say_up), _ = os.pipe(), None
            if os.fork() == 0:
                os.write(say_up, b".")
                wait()
                os._exit(0)
            os.read(up, 1)
            os.kill(os.getpid(), signal.SIGKILL)

    child, tell = in_a_child(worker_outlives)
    os.waitpid(child, 0)
    with locked(path):
        pass
    os.close(tell)


def test_a_thread_may_take_it_again_and_another_thread_may_not(path):
    with locked(path):
        with locked(path):
            pass
        assert path.exists()

        def try_it():
            with locked(path):
                pytest.fail("two threads hold it")

        with ThreadPoolExecutor(1) as pool, pytest.raises(Busy):
            pool.submit(try_it).result()
    assert not path.exists()


def test_the_text_of_a_killed_holder_names_nobody_who_has_it_now(path):
    path.write_text('{"pid": 1, "host": "gone", "since": "long ago"}')
    with locked(path), ThreadPoolExecutor(1) as pool, pytest.raises(Busy, match=f"process {os.getpid()}"):
        pool.submit(lambda: locked(path).__enter__()).result()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": "x"}', "\0" * 9000])
def test_a_text_that_says_nothing_is_another_process(path, text):
    path.write_text(text)
    assert locks.describe_owner(path) == "another process"


@pytest.mark.parametrize("refused", ["open", "flock"])
def test_a_place_without_locks_is_said_and_gone_on_with(path, monkeypatch, refused):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.os if refused == "open" else locks.fcntl, refused, refuse)
    entered = False
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\)"), locked(path):
        entered = True
    assert entered


def test_nothing_is_written_through_a_link(path, tmp_path):
    (tmp_path / "precious").write_text("thesis")
    path.symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="a link"), locked(path):
        pytest.fail("the link was taken for a lock")
    assert (tmp_path / "precious").read_text() == "thesis"


def test_a_lock_that_another_user_made_is_read_and_still_keeps_others_out(tmp_path, monkeypatch):
    path, real = tmp_path / "run.lock", os.open

    def of_another_user(name, flags, *mode):
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(name, flags, *mode)

    path.write_text("{}")
    with path.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(os, "open", of_another_user)
        with pytest.raises(Busy), locked(path):
            pass
