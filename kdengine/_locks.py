"""A lock on a place on the disk: one process has it, and the others are told which.

The lock is the system's, and ends with the process that has it, however that ends. A process that is forked, as a
loader's workers are, does not keep it: it would outlive a run that was killed.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdengine._untrusted import check_own, read_json

if os.name == "nt":
    import msvcrt
else:
    import fcntl

_OWNER_LIMIT = 4096
_BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class Busy(Exception):  # noqa: N818 - not an error of whoever asks
    """Somebody else has the lock; the text says who."""


class _Held:
    """The locks of this process: the thread, the descriptor and the number of holders of each."""

    def __init__(self) -> None:
        self.locks: dict[Path, tuple[int, int, int]] = {}

    def forget(self) -> None:
        """In a process that was forked from the holder: let go, without opening the lock for others."""
        for _, descriptor, _ in self.locks.values():
            with suppress(OSError):
                os.close(descriptor)
        self.locks.clear()


_held = _Held()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.forget)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock while the context lasts; a thread that holds it already may take it again.

    The file is removed when the lock is released. Where the place has no locks (some network file systems) or cannot be
    written, a warning says so and the context goes on without.

    Args:
        path: of the lock's file. Its directory must exist.

    Raises:
        Busy: another process, or another thread of this one, holds it.
        ValueError: something that is no lock stands there.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.lock"
    >>> with locked(path), locked(path):
    ...     path.exists()
    True
    >>> path.exists()
    False
    """
    key = path.absolute()
    thread, descriptor, holders = _held.locks.get(key, (threading.get_ident(), -1, 0))
    if holders == 0:
        descriptor = _acquire(path)
    elif thread != threading.get_ident():
        raise Busy(describe_owner(path))
    _held.locks[key] = (thread, descriptor, holders + 1)
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:
            _release(key)


def _release(key: Path) -> None:
    thread, descriptor, holders = _held.locks.pop(key)
    if holders > 1:
        _held.locks[key] = (thread, descriptor, holders - 1)
    elif descriptor >= 0:
        if os.name == "nt":  # what is open cannot be removed there
            os.close(descriptor)
        with suppress(OSError):
            key.unlink()
        if os.name != "nt":
            os.close(descriptor)


def _acquire(path: Path) -> int:
    """A descriptor that holds the lock; -1 where there can be none."""
    check_own(path)
    while True:
        try:
            descriptor = _open(path)
        except OSError as error:
            return _go_without(path, error)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _BUSY:
                raise Busy(describe_owner(path)) from None
            return _go_without(path, error)
        if _is_at(descriptor, path):
            with suppress(OSError):  # a disk too full for the name of the owner can still hold the lock
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(_me()).encode())
            return descriptor
        os.close(descriptor)  # its holder has removed it meanwhile: the next one has another file


def _open(path: Path) -> int:
    """Open a lock's file; another user's, which this one may not write, is opened to be read, and locks as well."""
    careful = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | careful, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | careful)


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        os.lseek(descriptor, _OWNER_LIMIT, os.SEEK_SET)  # beyond the text: a locked range cannot be read there
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _go_without(path: Path, error: OSError) -> int:
    warnings.warn(
        f"{path.parent} cannot be locked ({error.strerror or error}): a second process could write there too",
        stacklevel=4,
    )
    return -1


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def describe_owner(path: Path) -> str:
    """Say who holds a lock.

    >>> describe_owner(Path("nowhere.lock"))
    'another process'
    """
    try:
        owner = read_json(path, _OWNER_LIMIT)
        return f"process {int(owner['pid'])} on {str(owner['host'])[:64]} since {str(owner['since'])[:32]}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
