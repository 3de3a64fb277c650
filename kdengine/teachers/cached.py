"""A teacher whose logits are kept on the disk, so that it runs once for each input."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdengine._untrusted import MIB, check_own, read_json, shown
from kdengine.api import Batch, CheckpointError, ConfigurationError
from kdengine.api.batch import describe
from kdengine.api.models import call_model
from kdengine.api.teacher import FrozenModel

FORMAT = 1
_CLAIM_LIMIT = MIB
_TABLE_NAME = re.compile(r"epoch-\d+\.([1-9]\d{0,9})\.f32", re.ASCII)


class CachedTeacher(FrozenModel):
    """Serves logits from tables on the disk; the module runs only for a batch of which a row is missing.

    An input is known by (epoch, index): with :func:`kdengine.loader` its random transforms are a function of just
    that, so the cache stays right under augmentation, for any number of workers. A batch without an index (an
    evaluation, mixup) goes to the module. Rows carry checksums: one that a crash left half written, or that was
    damaged, is computed again.

    A folder is written as well as read: links in it are refused, so that no other file is overwritten.

    Only logits are kept, in float32: a loss that asks for the teacher's features cannot use this source.

    Args:
        module: the frozen teacher.
        folder: where the tables are; several runs may use one after another, with the same teacher and data.
        items: number of items of the training set.
        per_epoch: one table for each epoch, for inputs that are augmented; False keeps a single one, for inputs that
            never change.

    Raises:
        CheckpointError: the folder holds the tables of another teacher or data set.
    """

    gives_features = False
    gives_logits = True

    def __init__(self, module: nn.Module, folder: str, items: int, per_epoch: bool = True) -> None:
        if items < 1:
            raise ConfigurationError(f"items is the number of items of the training set, at least 1; got {items}")
        super().__init__(module)
        self.folder = Path(folder)
        self.items = items
        self.per_epoch = per_epoch
        self._table: tuple[int, Table] | None = None

    def place(self, device: torch.device) -> None:
        """Freeze the module and move it; the folder is not touched before the first training batch."""
        super().place(device)
        self._table = None

    def forward(self, batch: Batch) -> Any:
        """The cached logits of a batch, or the module's output."""
        if batch.index is None or batch.epoch is None:
            return self._run(batch.inputs)
        rows = batch.index.numpy()
        table = self._table_of(batch.epoch if self.per_epoch else 0)
        known = table.read(rows)
        if known is not None:
            return known.to(_device(batch.inputs))
        logits = self._run(batch.inputs)
        table.write(rows, logits)
        return logits

    def _run(self, inputs: Any) -> Tensor:
        logits = self.find_logits(call_model(self.module, inputs))
        if logits is None or logits.ndim != 2:
            seen = "no logits" if logits is None else describe(logits)
            raise ConfigurationError(f"the cached teacher must return logits (B, V), its model gave {seen}")
        return logits

    def _table_of(self, epoch: int) -> Table:
        if self._table is None:
            self._claim()
        if self._table is None or self._table[0] != epoch:
            self._table = (epoch, Table(self.folder / f"epoch-{epoch:05d}", self.items))
        return self._table[1]

    def _claim(self) -> None:
        """Note whose tables the folder holds, or refuse those of another teacher or data set."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "format": FORMAT,
            "items": self.items,
            "per_epoch": self.per_epoch,
            "teacher": digest(self.module),
        }
        claim(self.folder / "cache.json", facts)


class Table:
    """One table of logits: ``(N, V)`` float32 and, per row, the CRC-32 of its bytes (0 for an absent row).

    Args:
        stem: path without suffix; the files are ``stem.crc`` and ``stem.V.f32``.
        items: N.
    """

    def __init__(self, stem: Path, items: int) -> None:
        self.stem = stem
        self.items = items
        self._sums = _map(stem.with_suffix(".crc"), np.uint32, (items,))
        self._rows: np.memmap[Any, np.dtype[np.float32]] | None = None
        found = sorted(stem.parent.glob(f"{stem.name}.*.f32"))
        if found:
            self._open(_classes_of(found[0]))

    def _open(self, classes: int) -> np.memmap[Any, np.dtype[np.float32]]:
        self._rows = _map(self.stem.with_name(f"{self.stem.name}.{classes}.f32"), np.float32, (self.items, classes))
        return self._rows

    def read(self, index: np.ndarray[Any, Any]) -> Tensor | None:
        """The rows of a batch; None when any is absent or damaged."""
        if self._rows is None or not self._sums[index].all():
            return None
        rows = np.ascontiguousarray(self._rows[index])
        intact = all(checksum(row) == stored for row, stored in zip(rows, self._sums[index], strict=True))
        return torch.from_numpy(rows) if intact else None

    def write(self, index: np.ndarray[Any, Any], logits: Tensor) -> None:
        """Keep the rows of a batch; the checksum comes after the row."""
        values = logits.detach().to("cpu", torch.float32).contiguous().numpy()
        rows = self._open(values.shape[1]) if self._rows is None else self._rows
        if rows.shape[1] != values.shape[1]:
            raise CheckpointError(
                f"{rows.filename} holds logits of {rows.shape[1]} classes, the teacher gives {values.shape[1]}; "
                "remove the cache folder to start over"
            )
        rows[index] = values
        self._sums[index] = [checksum(row) for row in values]


def checksum(row: np.ndarray[Any, Any]) -> int:
    """CRC-32 of a row's bytes; never 0, which marks an absent row."""
    return zlib.crc32(row.tobytes()) or 1


def _map(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A file as an array, made with zeros when it is new; a file of another size is refused."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    _check_own(path)
    with path.open("ab") as file:
        present = file.tell()
        if present == 0:
            os.truncate(path, size)
        elif present != size:
            raise CheckpointError(f"{path} has {present} bytes, expected {size}; remove the cache folder to start over")
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _classes_of(path: Path) -> int:
    """The number of classes that a table's name tells."""
    match = _TABLE_NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(f"{path} is no table of logits; remove the cache folder to start over")
    return int(match[1])


def _check_own(path: Path) -> None:
    try:
        check_own(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; remove the cache folder to start over") from error


def claim(path: Path, facts: dict[str, Any]) -> None:
    """Note whose cache a folder is, or refuse one that is another's."""
    _check_own(path)
    try:
        stored = read_json(path, _CLAIM_LIMIT)
    except FileNotFoundError:
        path.write_text(json.dumps(facts), encoding="utf-8")
        return
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; remove the cache folder to start over") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} is damaged: expected an object; remove the cache folder to start over")
    if stored != facts:
        changed = [
            f"{key} was {shown(stored.get(key))}, is {facts[key]!r}" for key in facts if stored.get(key) != facts[key]
        ]
        raise CheckpointError(f"{path.parent} is the cache of another teacher or data set: {'; '.join(changed)}")


def digest(module: nn.Module) -> str:
    """A hash of a module's parameters and buffers."""
    state = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().cpu().contiguous().view(-1)
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return state.hexdigest()[:32]


def _device(inputs: Any) -> torch.device:
    tensor = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    return tensor.device if isinstance(tensor, Tensor) else torch.device("cpu")
