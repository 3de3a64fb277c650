"""Writing files so that a reader finds the whole of one or nothing of it.

Everything is made under a temporary directory beside its target, flushed to the disk, and renamed. The
temporaries carry the process that made them in their names, so that `sweep` can tell a dead run's from a live one's.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kdengine._processes import is_running

TEMPORARY_PREFIX: Final = ".tmp-"
REPLACED_PREFIX: Final = ".replaced-"
_CHUNK: Final = 2**20
_ABANDONED_AFTER_SECONDS: Final = 24 * 3600.0
_HOST: Final = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_open_temporaries: set[Path] = set()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file; an old one is replaced in one step. Its directory must exist.
        data: its content.

    Raises:
        OSError: the disk is full or the place cannot be written; the message names the path, and whatever
            was there before is untouched.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> write_bytes(path, b"one")
    >>> path.read_bytes()
    b'one'
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    r"""Write a UTF-8 text file whole or not at all, with the line ends that the text has.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_text(path, "a teacher\nand a student\n")
    >>> path.read_text().splitlines()
    ['a teacher', 'and a student']
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, obj: Any, *, indent: int | None = 2) -> None:
    """Write plain JSON whole or not at all; NaN and infinity, which JSON lacks, are a ValueError.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "summary.json"
    >>> write_json(path, {"steps": 100}, indent=None)
    >>> path.read_text().strip()
    '{"steps": 100}'
    """
    write_text(path, json.dumps(obj, indent=indent, allow_nan=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let another library write a file, and put it in place when it is whole.

    Args:
        path: the file to make or to replace. Its directory must exist.

    Yields:
        A path of the same name to write to; it exists and is empty.

    Raises:
        OSError: as `write_bytes`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "table.csv"
    >>> with replacing(path) as temporary:
    ...     _ = temporary.write_text("step,loss")
    >>> path.read_text()
    'step,loss'
    """
    with _naming(path), _temporary_directory(path.parent, path.name) as directory:
        temporary = directory / path.name
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # a writer with a temporary file of its own leaves it closed to everyone else
        _flush(temporary)
        temporary.replace(path)
        flush_directory(path.parent)


def allocate(path: Path, size: int) -> None:
    """Make a file of zeros, with its room on the disk taken, so that a memory map of it never finds the disk full.

    Of several processes that make the same file at once, one does; a file that is there gets the room that it lacks.

    Args:
        path: the file. Its directory must exist.
        size: its bytes.

    Raises:
        ValueError: it is there, and of another size.
        OSError: as `write_bytes`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "table"
    >>> allocate(path, 8)
    >>> path.read_bytes() == bytes(8)
    True
    """
    with _naming(path):
        if not path.exists():
            with _temporary_directory(path.parent, path.name) as directory:
                temporary = directory / path.name
                temporary.touch()
                _take_room(temporary, size, new=True)
                _name_if_new(temporary, path)
            flush_directory(path.parent)
        elif path.stat().st_size != size:
            raise ValueError(f"has {path.stat().st_size} bytes, expected {size}")
        else:
            _take_room(path, size, new=False)


def _take_room(path: Path, size: int, *, new: bool) -> None:
    """Let the file system reserve a file's blocks; where it cannot, write them."""
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                return os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
        if new:
            zeros = bytes(min(size, _CHUNK))
            for start in range(0, size, _CHUNK):
                file.write(zeros[: size - start])


def _name_if_new(temporary: Path, path: Path) -> None:
    """Give a file its name, unless another process has given it to one of its own meanwhile."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        pass
    except (OSError, NotImplementedError):  # a file system without hard links
        if not path.exists():
            temporary.rename(path)


@contextmanager
def publish_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a directory, and give it its name when everything in it is on the disk.

    Args:
        target: the directory to make; missing parents are made.
        replace: put it in the place of an existing one. A kill between the two renames leaves the old one where
            `replaced` says.

    Yields:
        A temporary directory beside the target. If the block raises, it is removed.

    Raises:
        FileExistsError: the target exists and is not to be replaced.
        OSError: as `write_bytes`.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "run"
    >>> with publish_directory(target) as directory:
    ...     write_text(directory / "recipe.toml", "version = 1")
    >>> [path.name for path in target.iterdir()]
    ['recipe.toml']
    """
    with _naming(target):
        if not replace:
            _refuse_existing(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_directory(target.parent, target.name) as directory:
            yield directory
            _flush_tree(directory)
            if replace and target.exists():
                _set_aside(target)
            _refuse_existing(target)  # to rename onto an empty directory would succeed
            directory.rename(target)
            flush_directory(target.parent)
        if replaced(target).exists():
            discard_directory(replaced(target))


def replaced(target: Path) -> Path:
    """Where a directory stands while another takes its place.

    >>> replaced(Path("checkpoints/step-00000100")).name
    '.replaced-step-00000100'
    """
    return target.with_name(REPLACED_PREFIX + target.name)


def discard_directory(path: Path) -> None:
    """Remove a directory so that a kill never leaves half of it under its name.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "step"
    >>> path.mkdir()
    >>> discard_directory(path)
    >>> path.exists()
    False
    """
    with _naming(path):
        temporary = _temporary_name(path.parent, path.name)
        path.rename(temporary)
        try:
            flush_directory(path.parent)
        finally:  # a full disk may refuse to flush, and what is removed makes room
            shutil.rmtree(temporary)


def remove(path: Path) -> None:
    """Remove a file, if it is there, and make that survive a power cut.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "summary.json"
    >>> write_bytes(path, b"{}")
    >>> remove(path)
    >>> path.exists()
    False
    """
    with _naming(path):
        if path.exists() or path.is_symlink():
            path.unlink(missing_ok=True)
            flush_directory(path.parent)


def sweep(parent: Path) -> list[Path]:
    """Remove what killed runs left unfinished in a directory, and what they had replaced.

    A temporary is left alone while the process that made it lives. One made on another machine cannot be
    asked for, so it is removed a day after its last change. A directory that was to be replaced is removed if the new
    one stands.

    Args:
        parent: the directory to clean; need not exist.

    Returns:
        What was removed.

    >>> import tempfile
    >>> parent = Path(tempfile.mkdtemp())
    >>> (parent / f"{TEMPORARY_PREFIX}of-nobody").mkdir()
    >>> sweep(parent)
    []
    """
    removed = []
    for path in sorted(parent.glob(f"{TEMPORARY_PREFIX}*")):
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    for path in sorted(parent.glob(f"{REPLACED_PREFIX}*")):
        if path.with_name(path.name.removeprefix(REPLACED_PREFIX)).exists():
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def sha256(path: Path) -> str:
    """Hash a file's content.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> write_bytes(path, b"")
    >>> sha256(path)[:8]
    'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_directory(path: Path) -> None:
    """Make renames and removals in a directory survive a power cut, where the system can.

    >>> flush_directory(Path("."))
    """
    if os.name != "nt":  # Windows cannot open a directory
        _flush(path)


def _flush(path: Path) -> None:
    # Windows flushes only what is open for writing; a directory opens for reading only.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            _flush(path)
        elif path.is_dir():
            flush_directory(path)
    flush_directory(root)


def _set_aside(target: Path) -> None:
    aside = replaced(target)
    if aside.exists():  # of an earlier replacement, whose new directory is the target
        discard_directory(aside)
    target.rename(aside)
    flush_directory(target.parent)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise FileExistsError(f"{target} exists already; remove it or choose another name")


def _temporary_name(parent: Path, name: str) -> Path:
    return parent / f"{TEMPORARY_PREFIX}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}-{name[:100]}"


@contextmanager
def _temporary_directory(parent: Path, name: str) -> Iterator[Path]:
    directory = _temporary_name(parent, name)
    _open_temporaries.add(directory.absolute())
    try:
        directory.mkdir()
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)  # nothing is left of a directory that was renamed
        _open_temporaries.discard(directory.absolute())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make sure that an OSError says which file it is about.

    A failed write does not, and a failed removal of a tree gives the last part of the name only.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and Path(str(error.filename or "")).parent == Path():
            error.filename = str(path)
        raise


def _is_abandoned(path: Path) -> bool:
    try:
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
            return True
    except FileNotFoundError:
        return False  # finished while we looked
    host, _, rest = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")
    pid = rest.partition("-")[0]
    if host != _HOST or not pid.isdecimal():
        return False
    if int(pid) == os.getpid():  # in a restarted container a dead run had this very number
        return path.absolute() not in _open_temporaries
    return not is_running(int(pid))
