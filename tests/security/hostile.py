"""Making files as a hostile hand would: whole, with their hashes right, and with something in them."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdengine.engine import checkpoint


def seal(folder: Path) -> None:
    """Put the sizes and hashes in a checkpoint's manifest right."""
    manifest = folder / "manifest.json"
    body = json.loads(manifest.read_text())
    body.pop("sha256", None)
    for name in body["files"]:
        body["files"][name] = checkpoint._describe_file(folder / name)
    write_manifest(folder, body)


def write_manifest(folder: Path, body: dict[str, Any]) -> None:
    """Write a manifest with its own hash right."""
    (folder / "manifest.json").write_text(json.dumps(body | {"sha256": checkpoint._digest(body)}))


def rewrite_state(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the state of a checkpoint, decoded, and store it again."""
    tree, meta = checkpoint.load(folder)
    change(tree)
    checkpoint.save(folder.parent, int(folder.name.removeprefix("step-")), tree, meta=meta, replace=True)


def rewrite_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def within(megabytes: int, call: Callable[[], Any]) -> str:
    """Carry out a call in a forked process whose address space may grow by so much only.

    Returns:
        ``returned VALUE`` or ``raised CLASS: MESSAGE``, or how the process ended otherwise.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _limit_address_space(megabytes)
            answer = f"returned {call()}"
        except BaseException as error:
            answer = f"raised {type(error).__name__}: {error}"
        os.write(writing, answer.encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return answer if status == 0 else f"ended with {status}"


def _limit_address_space(megabytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
