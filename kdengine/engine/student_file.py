"""The student as a file: plain safetensors that any tool reads, with a checksum that kdengine checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from kdengine import _files as files
from kdengine._untrusted import check_regular, opened, parse_json

SEAL = "kdengine.sha256"
"""Key of the checksum in the file's metadata."""
_HEADER_LIMIT = 100_000_000  # that of safetensors
_CHUNK = 2**20


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict as plain safetensors with a checksum; tied tensors are written once each."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    files.write_bytes(path, _sealed(safetensors.torch.save(state, {"format": "pt", **(metadata or {})})))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors; where the file has kdengine's checksum, its content must be that.

    Raises:
        ValueError: it is no such file, or its content is not the one that was written.
        OSError: it cannot be read.
    """
    check_regular(path)
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    check_seal(path)
    return state


def check_seal(path: Path) -> None:
    """Refuse a file whose content is not the one that its checksum was made of; one without a checksum passes.

    Raises:
        ValueError: the content is another.
        OSError: it cannot be read.
    """
    with opened(path, 2**63) as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(min(length, _HEADER_LIMIT)).decode("utf-8"))
        metadata = header.pop("__metadata__", None) or {}
        if (expected := metadata.pop(SEAL, None)) is None:
            return
        state = _begin(header, metadata)
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    if state.hexdigest() != expected:
        raise ValueError(
            f"expected content with the sha256 {expected[:64]}, got {state.hexdigest()}: the file is damaged, or "
            f"another tool has changed the weights and kept the metadata; then save them without its key {SEAL!r}"
        )


def _begin(header: dict[str, Any], metadata: dict[str, str]) -> Any:
    """The hash of names, types, shapes and metadata, to which the tensors' bytes are added."""
    return hashlib.sha256(json.dumps([header, metadata], sort_keys=True).encode())


def _sealed(data: bytes) -> bytes:
    """A safetensors file with its checksum, and its metadata sorted: the library writes them in an order of chance."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    state = _begin(header, metadata)
    state.update(data[8 + length :])
    header = {"__metadata__": dict(sorted({**metadata, SEAL: state.hexdigest()}.items())), **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
