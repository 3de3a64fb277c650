"""What a file is that is no weights, by how it begins: what people have in the place of a checkpoint."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Final

_HEAD: Final = 512
_STARTS: Final = (
    (b"version https://git-lfs", "a Git LFS pointer that stands for the file; 'git lfs pull' fetches the file itself"),
    (b"<!doctype html", "a web page, such as a login or an error page in the place of a download; download it again"),
    (b"<html", "a web page, such as a login or an error page in the place of a download; download it again"),
    (b"<?xml", "an XML text, such as the error of a storage service in the place of a download"),
    (b"{", "a JSON text, such as an index, a configuration or an error in the place of a download"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"bzh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zxz", "an xz archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x89hdf", "an HDF5 file, as Keras writes; convert it to a PyTorch state dict first"),
    (b"gguf", "a GGUF file, which holds no PyTorch state dict"),
    (b"\x93numpy", "a NumPy array"),
)
ZIP: Final = b"PK\x03\x04"


def recognise(path: Path) -> str | None:
    """Say what a file is that is no checkpoint; None for one that may be one.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "t.pth"
    >>> _ = path.write_text("<!DOCTYPE html><title>Sign in</title>")
    >>> recognise(path)
    'a web page, such as a login or an error page in the place of a download; download it again'
    """
    head = beginning(path)
    if not head:
        return "empty: its download or copy was cut off"
    if is_safetensors(path):  # which may begin with any byte
        return None
    if head.startswith(ZIP):
        return _of_zip(path)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for mark, what in _STARTS if start.startswith(mark)), None)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever its name: the length of a header, and a JSON object."""
    head = beginning(path)
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= path.stat().st_size - 8


def beginning(path: Path) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(_HEAD)


def _of_zip(path: Path) -> str | None:
    """What a zip archive is that ``torch.save`` has not written: it would hold a ``data.pkl`` in a folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        return None
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files:
        return "a TorchScript archive (torch.jit.save), which holds a program; save the model's state dict instead"
    if "data.pkl" in files:
        return None
    inside = ", ".join(names[:3])
    if names and all(name.endswith(".npy") for name in names):
        return f"an archive of NumPy arrays ({inside})"
    return f"a zip archive that torch.save has not written; it holds {inside or 'nothing'}"
