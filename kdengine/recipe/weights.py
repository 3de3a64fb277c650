"""Weights that people bring: safetensors or what ``torch.save`` wrote, read without running any code."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kdengine import _foreign as foreign
from kdengine._untrusted import shown
from kdengine.api import CheckpointError
from kdengine.engine.student_file import read_weights

_OBJECTS: Final = re.compile(r"(?:GLOBAL|[Uu]nsupported class|unrecognized function) ([\w.]+)")
_SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_ADVICE: Final = "save the state dict alone: torch.save(model.state_dict(), ...)"


def read_state(path: Path, role: str) -> dict[str, Tensor]:
    """The state dict in a file; one wrapped as ``{"state_dict": ...}`` or ``{"model": ...}`` is unwrapped.

    What the file holds decides how it is read, not its name.

    Raises:
        CheckpointError: it is missing or damaged, holds more than tensors, or is something else altogether.
    """
    if path.is_dir():
        raise CheckpointError(f"[{role}] {path} is a folder; name the file in it{_weights_in(path)}")
    if not path.is_file():
        raise CheckpointError(f"[{role}] there is no checkpoint file {path}")
    if (other := foreign.recognise(path)) is not None:
        raise CheckpointError(f"[{role}] {path} is no checkpoint but {other}")
    try:
        if foreign.is_safetensors(path) or (path.suffix == ".safetensors" and not _is_of_torch(path)):
            return read_weights(path)
        check_archive(path)
        with path.open("rb") as file:  # by its name, torch would hand a .safetensors to another reader
            given = file if path.suffix == ".safetensors" else path
            tree = torch.load(given, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"[{role}] {path} cannot be read: {_plain(error)}") from error
    except Exception as error:  # torch.load raises UnpicklingError for anything but plain tensors
        raise CheckpointError(f"[{role}] {path} {_explain(error)}") from error
    return _unwrapped(tree, path, role)


def _is_of_torch(path: Path) -> bool:
    """Whether a file begins as those of ``torch.save`` do: a zip archive, or before torch 1.6 a pickle."""
    return foreign.beginning(path).startswith((foreign.ZIP, b"\x80\x02"))


def _explain(error: Exception) -> str:
    """Why torch's restricted unpickler refuses a file, without its advice to run the code that the file holds."""
    said = str(error)
    if "Unsupported operand" in said:
        return "is no file of torch.save, or is damaged"
    found = _OBJECTS.search(said)
    objects = "" if found is None else f" ({found[1]})"
    return f"holds more than tensors{objects}, and kdengine runs no code from a checkpoint: {_ADVICE}"


def _plain(error: Exception) -> str:
    """What torch says of a file, without its advice to run the code that the file holds."""
    return str(error).partition("weights_only")[0].partition("\n")[0].strip() or type(error).__name__


def check_archive(path: Path) -> None:
    """Refuse an archive with compressed or overlapping parts, which ``torch.save`` never writes: a bomb has them.

    Raises:
        ValueError: the archive is larger inside than outside.
    """
    if not foreign.beginning(path).startswith(foreign.ZIP):  # the format before torch 1.6, or something else
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"the archive is damaged: {error}") from error
    outside = path.stat().st_size
    if inside > outside:
        raise ValueError(f"an archive of {outside:,} bytes would unpack to {inside:,}")


def _weights_in(folder: Path) -> str:
    """The files of a folder that may hold weights, for a message."""
    named = sorted(item.name for item in folder.iterdir() if item.suffix in _SUFFIXES)
    return f": {', '.join(named[:5])}" if named else ", of which none looks like weights"


def _found(tree: Any) -> str:
    """What a file holds in the place of a state dict, and which part of it is one."""
    if not isinstance(tree, dict):
        return f", found a {type(tree).__name__}"
    states = [str(key) for key, value in tree.items() if isinstance(value, dict) and _are_tensors(value)]
    keys = ", ".join(shown(key) for key in list(tree)[:6])
    return f", found the keys {keys}" + (f"; save tree[{states[0]!r}] alone" if states else "")


def _are_tensors(values: dict[Any, Any]) -> bool:
    return bool(values) and all(isinstance(value, Tensor) for value in values.values())


def _unwrapped(tree: Any, path: Path, role: str) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(wrapper), dict):
            tree = tree[wrapper]
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise CheckpointError(f"[{role}] {path} is no state dict: expected names with tensors{_found(tree)}")
    wrapped = all(str(name).startswith("module.") for name in tree)  # by DistributedDataParallel
    return {str(name).removeprefix("module.") if wrapped else str(name): value for name, value in tree.items()}
