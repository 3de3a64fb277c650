"""A table of logits on the disk, of which each row says whose input it belongs to."""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdengine import _files as files
from kdengine._untrusted import check_own
from kdengine.api import CheckpointError
from kdengine.teachers.fingerprints import Keys

_RECORD = np.dtype([("input", "<u8"), ("sum", "<u4"), ("spare", "<u4")])
_CLASSES = re.compile(r"([1-9]\d{0,9})", re.ASCII)
_START_OVER = "remove the cache folder to start over"

Array = np.ndarray[Any, Any]


class Found(NamedTuple):
    """What a table holds for a batch.

    Attributes:
        rows: logits ``(B, V)``, of use where ``known``; None where the table has none yet.
        known: ``(B,)`` bool, the rows that are intact and belong to their item's input.
        strangers: how many rows belong to other inputs.
    """

    rows: Tensor | None
    known: Array
    strangers: int


class Table:
    """Logits ``(N, V)`` in float32 and, per row, a record of 16 bytes.

    A record holds the hash of the input that the row belongs to, and the CRC-32 of that hash and the row's bytes (0 for
    an absent row). The room of both files is taken when they are made.

    Args:
        stem: path without suffix; the files are ``stem.rows`` (the records) and ``stem.V.f32``.
        items: N.
    """

    def __init__(self, stem: Path, items: int) -> None:
        self.stem = stem
        self.items = items
        self._records = _map(_beside(stem, "rows"), _RECORD, (items,))
        self._rows: np.memmap[Any, np.dtype[np.float32]] | None = None
        found = sorted(stem.parent.glob(f"{stem.name}.*.f32"))
        if found:
            self._open(self._classes_of(found[0]))

    def _open(self, classes: int) -> np.memmap[Any, np.dtype[np.float32]]:
        self._rows = _map(_beside(self.stem, f"{classes}.f32"), np.dtype(np.float32), (self.items, classes))
        return self._rows

    def _classes_of(self, path: Path) -> int:
        """The number of classes that a table's name tells."""
        match = _CLASSES.fullmatch(path.name.removeprefix(f"{self.stem.name}.").removesuffix(".f32"))
        if match is None:
            raise CheckpointError(f"{path} is no table of logits; {_START_OVER}")
        return int(match[1])

    def read(self, index: Array, keys: Keys) -> Found:
        """Find the rows of a batch.

        Args:
            index: ``(B,)``, positions in the data set.
            keys: ``(B,)``, the hash of each item's input.
        """
        records = self._records[index]
        present = records["sum"] != 0
        known = present & (records["input"] == keys)
        strangers = int(present.sum() - known.sum())
        if self._rows is None:
            return Found(None, np.zeros(len(index), dtype=bool), strangers)
        rows = np.ascontiguousarray(self._rows[index])
        for position in known.nonzero()[0]:
            known[position] = checksum(keys[position], rows[position]) == records["sum"][position]
        return Found(torch.from_numpy(rows), known, strangers)

    def write(self, index: Array, keys: Keys, logits: Tensor) -> None:
        """Keep rows, but not those with a value that is not finite; a row's record comes after it.

        Args:
            index: ``(B,)``, positions in the data set.
            keys: ``(B,)``, the hash of each item's input.
            logits: ``(B, V)``.
        """
        values = logits.detach().to("cpu", torch.float32).contiguous().numpy()
        rows = self._open(values.shape[1]) if self._rows is None else self._rows
        if rows.shape[1] != values.shape[1]:
            raise CheckpointError(
                f"{rows.filename} holds logits of {rows.shape[1]} classes, the teacher gives {values.shape[1]}; "
                f"{_START_OVER}"
            )
        finite = np.isfinite(values).all(axis=1)
        index, keys, values = index[finite], keys[finite], values[finite]
        rows[index] = values
        records = np.zeros(len(index), dtype=_RECORD)
        records["input"] = keys
        records["sum"] = [checksum(key, row) for key, row in zip(keys, values, strict=True)]
        self._records[index] = records


def checksum(key: np.uint64, row: Array) -> int:
    """CRC-32 of a row's bytes and of the input that it belongs to; never 0, which marks an absent row."""
    return zlib.crc32(row.tobytes(), zlib.crc32(key.tobytes())) or 1


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A file as an array, made with zeros when it is new; a file of another size is refused."""
    try:
        check_own(path)
        files.allocate(path, math.prod(shape) * dtype.itemsize)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; {_START_OVER}") from error
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
