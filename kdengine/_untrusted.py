"""Reading files that nobody vouches for: regular files of a bounded size, JSON and TOML that cannot run away.

What is wrong is a ValueError that does not name the file: whoever reads it knows what it is for.
"""

import json
import os
import re
import reprlib
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

MIB: Final = 2**20
TOML_LIMIT: Final = MIB // 4
"""Bytes of a recipe; the longest that come with kdengine have 4 kB."""
_KEY_PARTS: Final = 64
_LOOK: Final = 4096
_MARKS: Final = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_PART: Final = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_LONG_KEY: Final = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}(?:\.[ \t]*+{_PART}){{{_KEY_PARTS}}}")
_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def check_regular(path: Path) -> None:
    """Refuse what is no regular file: to open a FIFO waits for its other end, and a device may never end.

    Raises:
        ValueError: it is none.
        OSError: it cannot be looked at, or is not there.

    >>> check_regular(Path("."))
    Traceback (most recent call last):
        ...
    ValueError: expected a regular file, found a directory
    """
    _check_mode(path.stat().st_mode)


def check_own(path: Path) -> None:
    """Refuse to write into what is there under a name, unless it is a regular file in this very place.

    Through a link another file would be cut off and overwritten.

    Raises:
        ValueError: it is a link, or no regular file.
    """
    if path.is_symlink():
        raise ValueError("expected a regular file, found a link to another one")
    if path.exists():
        check_regular(path)


@contextmanager
def opened(path: Path, limit: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most `limit` bytes for reading.

    Raises:
        ValueError: it is no regular file, or larger.
        OSError: it cannot be opened.
    """
    check_regular(path)
    # Without waiting: what was regular may have been exchanged for a FIFO in between.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _check_mode(found.st_mode)
        if found.st_size > limit:
            raise ValueError(f"expected at most {limit:,} bytes, got {found.st_size:,}")
        yield file


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        ValueError: it is no regular file, or larger.
        OSError: it cannot be read.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> _ = path.write_text("much too long")
    >>> read_bytes(path, limit=4)
    Traceback (most recent call last):
        ...
    ValueError: expected at most 4 bytes, got 13
    """
    with opened(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def decode(data: bytes) -> str:
    r"""Read text in UTF-8, with or without the byte order mark that some editors put before it.

    Raises:
        ValueError: it is in another encoding, which is named where its bytes tell, or no text.

    >>> decode(b"\xef\xbb\xbfversion = 1")
    'version = 1'
    >>> decode("version = 1".encode("utf-16"))
    Traceback (most recent call last):
        ...
    ValueError: expected text in UTF-8, found UTF-16; save the file as UTF-8 (PowerShell: Set-Content -Encoding utf8)
    """
    found = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if found is None and b"\0" in data[:_LOOK]:
        found = "bytes of 0, as in UTF-16 or in a binary file"
    if found is None:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            found = f"the byte 0x{data[error.start]:02x} in line {line}, as in an encoding of one country"
    raise ValueError(
        f"expected text in UTF-8, found {found}; save the file as UTF-8 (PowerShell: Set-Content -Encoding utf8)"
    )


def read_json(path: Path, limit: int) -> Any:
    """Read JSON from a regular file of at most `limit` bytes, as `parse_json`.

    Raises:
        ValueError: it is no such file, or no such JSON.
        OSError: it cannot be read.
    """
    return parse_json(read_bytes(path, limit).decode("utf-8"))


def parse_json(text: str) -> Any:
    """Read JSON that says one thing only: a key given twice is refused, and so is endless nesting.

    Python's NaN and Infinity are read: 1e999 is infinite as well, so whoever takes a number looks at it anyway.

    Raises:
        ValueError: the text is no such JSON.

    >>> parse_json('{"step": 1, "step": 2}')
    Traceback (most recent call last):
        ...
    ValueError: the key 'step' stands twice in one object
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML of at most `TOML_LIMIT` characters.

    Dotted keys are bounded as well: the standard library keeps every beginning of each, which grows with the square of
    its parts.

    Raises:
        ValueError: the text is longer, or no such TOML.

    >>> parse_toml("losses.kd.weight = 1")
    {'losses': {'kd': {'weight': 1}}}
    """
    if len(text) > TOML_LIMIT:
        raise ValueError(f"expected at most {TOML_LIMIT:,} characters, got {len(text):,}")
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("the TOML is nested too deeply") from error


def shown(value: Any) -> str:
    """A value out of such a file for a message: in short, on one line, whatever it is.

    >>> len(shown("x" * 1_000_000))
    100
    """
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return f"a {type(value).__name__} too large to show"


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ValueError(f"expected a regular file, found {_KINDS.get(stat.S_IFMT(mode), 'something else')}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return made
