"""Records as one JSON object per line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

from kdengine._untrusted import MIB, check_own
from kdengine.api import CheckpointError, Logger, RunInfo

LONGEST_LINE = MIB


class Jsonl(Logger):
    """Appends every record to ``metrics.jsonl`` in the run directory; without one, does nothing.

    A line is ``{"kind": "train", "step": 10, "loss": 0.5, ...}``, written whole and at once. An undefined value is
    null; what JSON has no number for is a string that ``float()`` reads: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
    A resume cuts the file back to the checkpoint; a fresh fit starts an empty file.
    """

    name: ClassVar[str] = "metrics.jsonl"

    def __init__(self) -> None:
        self._file: FileIO | None = None
        self._cut: int | None = None

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
        size = 0
        if run.step:
            size = bytes_up_to(path, run.step)
            size = size if self._cut is None else min(size, self._cut)
        self._cut = None
        self._file = path.open("ab", buffering=0)  # what a full disk refuses must not come later, after other lines
        self._file.truncate(size)

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """Append one line."""
        if self._file is None:
            return
        append(self._file, {"kind": kind, "step": step}, record)

    def finish(self, status: str) -> None:
        """Close the file."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Bytes written so far; they are on the disk when this returns, as the checkpoint will be."""
        if self._file is None:
            return {"bytes": 0}
        os.fsync(self._file.fileno())
        return {"bytes": self._file.seek(0, os.SEEK_END)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut the file back to the checkpoint: now if it is open, else when the fit starts."""
        size = state["bytes"]
        if type(size) is not int or size < 0:
            raise CheckpointError(f"expected the bytes of {self.name} at the checkpoint, got {size!r}")
        if self._file is None:
            self._cut = size
        else:
            self._file.truncate(size)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def append(file: FileIO, fields: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Write one line: what a file puts in front, then what the record holds beside it."""
    fields.update((key, _plain(value)) for key, value in record.items() if key not in fields)
    line = json.dumps(fields, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    while line:  # a disk that is getting full takes a part
        line = line[file.write(line) :]


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
