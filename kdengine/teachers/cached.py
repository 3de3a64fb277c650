"""A teacher whose logits are kept on the disk, so that it runs once for each input."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdengine import _files as files
from kdengine._paths import expanded
from kdengine._untrusted import MIB, check_own, read_json, shown
from kdengine.api import Batch, CheckpointError, ConfigurationError
from kdengine.api.batch import describe, first_tensor
from kdengine.api.errors import KDEngineWarning
from kdengine.api.models import call_model
from kdengine.api.teacher import FrozenModel
from kdengine.teachers.fingerprints import Keys, configuration_digest, input_keys, weights_digest
from kdengine.teachers.table import Array, Found, Table

FORMAT = 2
_CLAIM_LIMIT = MIB
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CachedTeacher(FrozenModel):
    """Serves logits from tables on the disk; the module runs only for a batch of which a row is missing.

    Every row says by a hash which input it belongs to, and is served for that very input only: neither another seed's
    augmentation nor a changed data set, another transform or a callback that changes inputs can get logits that are
    not theirs. A row of another input is computed again and replaced.

    Inputs that never change share one table, over epochs and seeds. Where :func:`kdengine.loader` draws random
    transforms, a function of (seed, epoch, index), there is a table for each seed and epoch. A batch without an index
    (an evaluation, mixup) goes to the module. Rows carry checksums: one that a crash left half written, or that was
    damaged, is computed again. Logits with a value that is not finite are never kept.

    A folder is written as well as read: links in it are refused, so that no other file is overwritten. A table takes
    its room when it is begun; where the disk has none, the module runs live, and a warning says so.

    Only logits are kept, in float32: a loss that asks for the teacher's features cannot use this source.

    Args:
        module: the frozen teacher.
        folder: where the tables are; several runs may use it, with the same teacher and data.
        items: number of items of the training set.
        per_epoch: tables for each seed and epoch, where inputs are augmented; False keeps a single one, for inputs that
            never change although their data set does not say so (``random = False``).

    Attributes:
        served: rows that came from the cache.
        computed: rows that the module computed.
        replaced: rows of those that the cache held for another input.

    Raises:
        CheckpointError: the folder holds the tables of another teacher, precision or data set, or of an older version.
    """

    gives_features = False
    gives_logits = True

    def __init__(self, module: nn.Module, folder: str, items: int, per_epoch: bool = True) -> None:
        if items < 1:
            raise ConfigurationError(f"items is the number of items of the training set, at least 1; got {items}")
        super().__init__(module)
        self.folder = expanded(folder)
        self.items = items
        self.per_epoch = per_epoch
        self.served = self.computed = self.replaced = 0
        self._claimed = False
        self._table: tuple[str, Table] | None = None
        self._no_room = False

    def __getstate__(self) -> dict[str, Any]:
        """All but the open tables: a copy opens its own."""
        return {**self.__dict__, "_table": None, "_claimed": False}

    def place(self, device: torch.device) -> None:
        """Freeze the module and move it; the folder is not touched before the first training batch."""
        super().place(device)
        self._table, self._claimed, self._no_room = None, False, False

    def forward(self, batch: Batch) -> Tensor:
        """The cached logits of a batch, or the module's."""
        if batch.index is None or batch.epoch is None:
            return self._run(batch.inputs)
        index = self._positions(batch.index)
        table = self._table_of(batch)
        if table is None:
            return self._run(batch.inputs).float()
        source = batch if batch.host is None else batch.host  # hashed where it came from: nothing waits for the device
        keys = input_keys(source.inputs, batch.size)
        found = table.read(index, keys)
        if found.rows is not None and found.known.all():
            self.served += len(index)
            return found.rows.to(_device(batch.inputs))
        return self._compute(batch, table, index, keys, found)

    def _compute(self, batch: Batch, table: Table, index: Array, keys: Keys, found: Found) -> Tensor:
        """Run the module for a batch, and keep the rows that the table lacks."""
        if found.strangers and not self.replaced:
            warnings.warn(
                f"the logits cache {self.folder} holds rows that belonged to other inputs ({found.strangers} of the "
                f"first {len(index)} asked for): those of another data set, transform or seed, or of a callback that "
                "changes inputs. They are not used: the teacher computes such rows again, and they are replaced",
                KDEngineWarning,
                stacklevel=2,
            )
        logits = self._run(batch.inputs).float()
        lacking = ~found.known
        try:
            table.write(index[lacking], keys[lacking], logits[torch.from_numpy(lacking).to(logits.device)])
        except OSError as error:
            self._go_on_without(error)
        self.computed += len(index)
        self.replaced += found.strangers
        return logits

    def _run(self, inputs: Any) -> Tensor:
        logits = self.find_logits(call_model(self.module, inputs))
        if logits is None or logits.ndim != 2:
            seen = "no logits" if logits is None else describe(logits)
            raise ConfigurationError(f"the cached teacher must return logits (B, V), its model gave {seen}")
        return logits

    def _positions(self, index: Tensor) -> Array:
        positions: Array = index.cpu().numpy()
        if len(positions) and not (positions.min() >= 0 and positions.max() < self.items):
            raise ConfigurationError(
                f"the cached teacher has items={self.items}, the number of items of the training set, but a batch has "
                f"the positions {positions.min()} to {positions.max()}"
            )
        return positions

    def _table_of(self, batch: Batch) -> Table | None:
        """The table of a batch; None where the disk has no room for it."""
        stem = table_name(batch.draw if self.per_epoch else None)
        if self._no_room or (self._table is not None and self._table[0] == stem):
            return None if self._table is None or self._no_room else self._table[1]
        self._table = None
        try:
            if not self._claimed:
                self._claim(_device(batch.inputs))
            self._table = (stem, Table(self.folder / stem, self.items))
        except OSError as error:
            self._go_on_without(error)
            return None
        return self._table[1]

    def _go_on_without(self, error: OSError) -> None:
        """Let the module run live from here on, where the disk is full; any other error is raised."""
        if error.errno not in _NO_ROOM:
            raise error
        self._no_room = True
        warnings.warn(
            f"the logits cache cannot be written ({error}); the teacher computes what it lacks, at every epoch",
            KDEngineWarning,
            stacklevel=2,
        )

    def _claim(self, device: torch.device) -> None:
        """Note whose tables the folder holds, or refuse those of another teacher or data set."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.sweep(self.folder)
        facts = {
            "format": FORMAT,
            "items": self.items,
            "teacher": weights_digest(self.module),
            "configuration": configuration_digest(getattr(self.module, "_orig_mod", self.module)),
            "precision": _precision(device),
        }
        claim(self.folder / "cache.json", facts)
        self._claimed = True


def table_name(draw: tuple[int | None, int] | None) -> str:
    """Name the table of the inputs of one draw.

    >>> table_name(None), table_name((3, 0)), table_name((None, 0))
    ('inputs', 'seed-3-epoch-00000', 'epoch-00000')
    """
    if draw is None:
        return "inputs"
    seed, epoch = draw
    return f"epoch-{epoch:05d}" if seed is None else f"seed-{seed}-epoch-{epoch:05d}"


def claim(path: Path, facts: dict[str, Any]) -> None:
    """Note whose cache a folder is, or refuse one that is another's."""
    try:
        check_own(path)
        stored = read_json(path, _CLAIM_LIMIT)
    except FileNotFoundError:
        files.write_json(path, facts)
        return
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; remove the cache folder to start over") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} is damaged: expected an object; remove the cache folder to start over")
    if stored.get("format") != facts["format"]:
        raise CheckpointError(
            f"{path.parent} holds logits in format {shown(stored.get('format'))}, expected {facts['format']}, whose "
            "rows say which input they belong to; remove the folder, and the teacher fills it again"
        )
    if stored != facts:
        changed = [
            f"{key} was {shown(stored.get(key))}, is {facts[key]!r}" for key in facts if stored.get(key) != facts[key]
        ]
        raise CheckpointError(
            f"{path.parent} is the cache of another teacher or data set: {'; '.join(changed)}; choose another folder, "
            "or remove this one to start over"
        )


def _precision(device: torch.device) -> str:
    """How the module computes."""
    if not torch.is_autocast_enabled(device.type):
        return "as its parameters"
    return f"autocast {str(torch.get_autocast_dtype(device.type)).removeprefix('torch.')}"


def _device(inputs: Any) -> torch.device:
    tensor = first_tensor(inputs)
    return torch.device("cpu") if tensor is None else tensor.device
