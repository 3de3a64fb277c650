"""Records as one JSON object per line."""

from __future__ import annotations

import errno
import json
import math
import os
import warnings
from collections.abc import Collection, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

from kdengine._untrusted import MIB, check_own, shown
from kdengine.api import CheckpointError, Logger, RunInfo
from kdengine.api.errors import KDEngineWarning

LONGEST_LINE = MIB
MOST_UNWRITTEN = 64 * MIB
"""Bytes of records that are kept while the disk refuses them."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Jsonl(Logger):
    """Appends every record to ``metrics.jsonl`` in the run directory; without one, does nothing.

    A line is ``{"kind": "train", "step": 10, "loss": 0.5, ...}``, written whole and at once. An undefined value is
    null; what JSON has no number for is a string that ``float()`` reads: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
    A resume cuts the file back to the checkpoint; a fresh fit starts an empty file.

    What the disk refuses, because it is full for a while, is kept in memory and written with the next record that
    finds room; half a line is cut off first. A warning says so once. The checkpoint holds what is still to be written.
    """

    name: ClassVar[str] = "metrics.jsonl"

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: FileIO | None = None
        self._cut: tuple[int, str] | None = None
        self._size = 0  # of the lines that stand whole
        self._torn = False
        self._pending = b""
        self._told = False

    def start(self, run: RunInfo) -> None:
        """Open the file: emptied, or cut back to the checkpoint."""
        self._close()
        if run.out is None:
            return
        run.out.mkdir(parents=True, exist_ok=True)
        path = run.out / self.name
        try:
            check_own(path)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        size, pending = self._cut or (None, "")
        self._size = 0
        if run.step:
            present = bytes_up_to(path, run.step)
            self._size = present if size is None else min(present, size)
            self._pending = pending.encode()
        self._cut, self._path, self._torn = None, path, True
        try:
            self._open()
        except OSError as error:
            self._postpone(error, only=_NO_ROOM)

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """Append one line."""
        self._append({"kind": kind, "step": step}, record)

    def finish(self, status: str) -> None:
        """Close the file.

        Raises:
            OSError: records have found no room to the end; they are lost.
        """
        self._flush()
        lost, path = self._pending.count(b"\n"), self._path
        self._close()
        if lost:
            raise OSError(errno.ENOSPC, f"{lost} records found no room to the end", str(path))

    def state_dict(self) -> dict[str, Any]:
        """Bytes written so far, which are on the disk when this returns, as the checkpoint will be; and what is not."""
        self._flush()
        if self._file is None:
            return {"bytes": self._size} | self._unwritten()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._postpone(error)
        return {"bytes": self._size} | self._unwritten()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the file back to the checkpoint: now if it is open, else when the fit starts."""
        size, pending = state["bytes"], state.get("unwritten", "")
        if type(size) is not int or size < 0 or not isinstance(pending, str):
            raise CheckpointError(f"expected the bytes of {self.name} at the checkpoint, got {shown(state)}")
        if self._path is None:
            self._cut = (size, pending)
        else:
            self._size, self._pending, self._torn = min(size, self._size), pending.encode(), True
            self._flush()

    def _append(self, fields: dict[str, Any], record: Mapping[str, Any]) -> None:
        """Write one line: what a file puts in front, then what the record holds beside it."""
        if self._path is None:
            return
        fields.update((key, _plain(value)) for key, value in record.items() if key not in fields)
        self._pending += json.dumps(fields, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        """Write what is to be written, behind the last line that is whole."""
        if self._path is None or not (self._pending or self._torn):
            return
        try:
            file = self._open()
            line = self._pending
            while line:  # a disk that is getting full takes a part
                self._torn = True
                line = line[file.write(line) :]
        except OSError as error:
            self._postpone(error)
        else:
            self._size += len(self._pending)
            self._pending, self._torn = b"", False

    def _open(self) -> FileIO:
        """The file, without half a line at its end."""
        assert self._path is not None, "only a file that was started is written"
        if self._file is None:
            # Without a buffer: what a full disk refuses must not come later, after other lines.
            self._file = self._path.open("ab", buffering=0)
        if self._torn:
            self._file.truncate(self._size)
            self._torn = False
        return self._file

    def _postpone(self, error: OSError, only: Collection[int] | None = None) -> None:
        """Keep what could not be written for the next time, and say so; raise what no waiting will mend."""
        if (only is not None and error.errno not in only) or len(self._pending) > MOST_UNWRITTEN:
            raise error
        if not self._told:
            self._told = True
            warnings.warn(
                f"{self._path} cannot be written ({error.strerror or error}); its records are kept in memory and "
                "written when that is possible again",
                KDEngineWarning,
                stacklevel=2,
            )

    def _unwritten(self) -> dict[str, str]:
        return {"unwritten": self._pending.decode()} if self._pending else {}

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._path, self._pending, self._torn, self._size = None, None, b"", False, 0


def bytes_up_to(path: Path, step: int) -> int:
    """Bytes of the file's records up to a step.

    A killed process may have left half a line, and lines of later steps where the checkpoint does not say how long the
    file was.

    Raises:
        CheckpointError: a line is longer than any record.
    """
    if not path.exists():
        return 0
    size = 0
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(LONGEST_LINE), b""):
            if len(line) == LONGEST_LINE:
                raise CheckpointError(f"{path} is damaged: a line is longer than {LONGEST_LINE:,} bytes")
            if not line.endswith(b"\n") or _step(line) > step:
                break
            size += len(line)
    return size


def _step(line: bytes) -> int | float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return math.inf  # no record of ours


def _plain(value: Any) -> Any:
    """A value that JSON can say."""
    if value is None or isinstance(value, bool | int | str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
