"""Records as one JSON object per line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kdengine._untrusted import MIB, check_own
from kdengine.api import CheckpointError, Logger, RunInfo

NAME = "metrics.jsonl"
LONGEST_LINE = MIB


class Jsonl(Logger):
    """Appends every record to ``metrics.jsonl`` in the run directory; without one, does nothing.

    A line is ``{"kind": "train", "step": 10, "loss": 0.5, ...}``, written whole and at once. An undefined value is
    null; what JSON has no number for is a string that ``float()`` reads: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
    A resume cuts the file back to the checkpoint; a fresh fit starts an empty file.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._cut: int | None = None

    def start(self, run: RunInfo) -> None:
        """Open the file: emptied, or cut back to the checkpoint."""
        self._close()
        if run.out is None:
            return
        run.out.mkdir(parents=True, exist_ok=True)
        path = run.out / NAME
        try:
            check_own(path)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        size = 0
        if run.step:
            size = whole_lines(path)
            size = size if self._cut is None else min(size, self._cut)
        self._cut = None
        self._file = path.open("ab")
        self._file.truncate(size)

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """Append one line."""
        if self._file is None:
            return
        fields = {"kind": kind, "step": step}
        fields.update((key, _plain(value)) for key, value in record.items() if key not in fields)
        self._file.write(json.dumps(fields, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

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
            raise CheckpointError(f"expected the bytes of {NAME} at the checkpoint, got {size!r}")
        if self._file is None:
            self._cut = size
        else:
            self._file.truncate(size)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def whole_lines(path: Path) -> int:
    """Bytes of the file up to its last line end: a killed process may have left half a line.

    Raises:
        CheckpointError: there is none where the last line must have begun.
    """
    if not path.exists():
        return 0
    with path.open("rb") as file:
        start = max(file.seek(0, os.SEEK_END) - LONGEST_LINE, 0)
        file.seek(start)
        end = file.read(LONGEST_LINE).rfind(b"\n") + 1
    if start and not end:
        raise CheckpointError(f"{path} is damaged: its last line is longer than {LONGEST_LINE:,} bytes")
    return start + end


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
