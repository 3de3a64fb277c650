"""Tensors of which every process holds a shard, as safetensors files that any number of processes can read.

PyTorch's distributed checkpoint (DCP) writes and reads them: each process one file, with the place of every shard in
its header, and no pickle. Who reads says how many processes hold the result: shards are cut and joined on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kdengine.engine.shards import is_sharded
from kdengine.engine.tensors import dtype_named

Described: TypeAlias = dict[str, dict[str, Any]]
"""For each tensor its whole ``shape`` and its ``dtype``."""

MakeEmpty: TypeAlias = Callable[[Sequence[int], torch.dtype], Tensor]


def plain(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A whole tensor in this process."""
    return torch.empty(tuple(shape), dtype=dtype)


def describe(tensors: Mapping[str, Tensor]) -> Described:
    """What has to be known of sharded tensors before they are read."""
    return {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    }


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's shards; every process must ask, with tensors of the same names.

    Raises:
        OSError: a process could not write; every process raises.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        rank, (failure, _) = next(iter(error.failures.items()))
        raise OSError(f"{folder}: process {rank} could not write its shards: {failure}") from error


def read(folder: Path, described: Described, empty: MakeEmpty) -> dict[str, Tensor]:
    """Read tensors: whole ones, or where ``empty`` makes sharded ones, this process's shards.

    Args:
        folder: where :func:`write` wrote.
        described: what :func:`describe` gave.
        empty: makes the tensors that are filled; where they are sharded, every process must ask.

    Raises:
        ValueError: the files and the description disagree.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    check(folder, described)
    tensors = {name: empty(facts["shape"], dtype_named(facts["dtype"])) for name, facts in described.items()}
    alone = not any(map(is_sharded, tensors.values()))
    try:
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except (CheckpointException, KeyError, ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{folder}: the shards cannot be read: {error}") from error
    return tensors


def check(folder: Path, described: Any) -> None:
    """Refuse a description that asks for more memory than the files can fill.

    Raises:
        ValueError: it does, or it is none.
    """
    if not isinstance(described, dict):
        raise ValueError(f"expected the shape and dtype of each sharded tensor, got {described!r}")
    wanted = 0
    for name, facts in described.items():
        shape = facts.get("shape") if isinstance(facts, dict) else None
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"sharded tensor {name!r}: expected a shape and a dtype, got {facts!r}")
        wanted += prod(shape) * dtype_named(facts.get("dtype")).itemsize
    present = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if wanted > present:
        raise ValueError(f"{folder}: the sharded tensors are {wanted} bytes, but the files hold {present}")
