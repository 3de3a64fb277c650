"""Checkpoints on the disk: one directory per step, whole or absent, checked before it is read.

    checkpoints/step-00000100/
        tensors.safetensors    the tensors                               (kdengine.engine.tensors)
        state.json             the rest of the state                     (kdengine.engine.codec)
        shards/                tensors of which each process held a shard (kdengine.engine.shard_files)
        manifest.json          format, step, meta, size and sha256 of every file and of itself, shapes of shards

What goes into a checkpoint is not decided here. A checkpoint may come from anywhere: nothing in it is executed, and
reading it takes memory in proportion to its files, of which the manifest and the state are bounded.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdengine import _files as files
from kdengine._untrusted import MIB, check_regular, read_json, shown
from kdengine.api.errors import CheckpointError
from kdengine.api.processes import ALONE, Processes
from kdengine.engine import codec, shard_files
from kdengine.engine.shards import is_sharded
from kdengine.engine.tensors import load_tensors, save_tensors

FORMAT: Final = 2
MANIFEST_LIMIT: Final = 16 * MIB
STATE_LIMIT: Final = 256 * MIB
_TENSORS: Final = "tensors.safetensors"
_STATE: Final = "state.json"
_MANIFEST: Final = "manifest.json"
_SHARDS: Final = "shards"
_SHARD_NAME: Final = re.compile(rf"{_SHARDS}/[\w.-]+\.safetensors", re.ASCII)
_STEP_NAME: Final = re.compile(r"step-(\d{8,})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint says about itself.

    Attributes:
        step: optimizer step after which it was taken.
        meta: what the writer said about it.
        files: for each file its ``sha256`` and its size in ``bytes``.
        sharded: for each sharded tensor its ``shape`` and ``dtype``.
    """

    step: int
    meta: dict[str, Any]
    files: dict[str, dict[str, Any]]
    sharded: shard_files.Described


def save(
    directory: Path,
    step: int,
    tree: Any,
    *,
    meta: dict[str, Any],
    replace: bool = False,
    processes: Processes = ALONE,
) -> Path:
    """Write a checkpoint; a kill at any moment leaves it whole or absent.

    Args:
        directory: where the checkpoints of a run are; made if missing.
        step: optimizer step, 0 or more.
        tree: the state, of what `kdengine.engine.codec` can hold.
        meta: facts to be read without loading the state (fingerprint, versions), of the same kinds but without
            tensors.
        replace: put it in the place of an undamaged checkpoint of the same step. A damaged one is always
            replaced. Until the new one has its name, `steps` and `find_latest` know the old one, under whatever name.
        processes: those that hold shards of the tree's tensors and all save together; the main one writes the rest.

    Returns:
        The checkpoint's directory.

    Raises:
        kdengine.engine.codec.UnsupportedState: a value cannot be stored, or what is no tensor is too much; nothing
            was written.
        FileExistsError: an undamaged checkpoint of this step exists.
        OSError: the disk is full or the place cannot be written; nothing is left behind.

    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> path = save(directory, 100, {"momentum": (0.9, 0.999)}, meta={"torch": "2.10"})
    >>> path.name, load(path)
    ('step-00000100', ({'momentum': (0.9, 0.999)}, {'torch': '2.10'}))
    """
    if step < 0:
        raise ValueError(f"a checkpoint's step must be 0 or more, got {step}")
    target = directory / _name(step)
    state, tensors = codec.encode(tree)
    sharded = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    plain = {name: tensor for name, tensor in tensors.items() if name not in sharded}
    body = {"format": FORMAT, "step": step, "meta": _encode_meta(meta), "sharded": shard_files.describe(sharded)}

    def begin() -> Path:
        present = _by_step(directory).get(step, target)
        if not replace and _is_whole(present):
            raise FileExistsError(f"{present} is an undamaged checkpoint of the same step; pass replace=True")
        return publication.enter_context(files.publish_directory(target, replace=True))

    def finish() -> None:
        save_tensors(temporary / _TENSORS, plain)
        files.write_json(temporary / _STATE, state, indent=None)
        body["files"] = {name: _describe_file(temporary / name) for name in _content(temporary)}
        files.write_json(temporary / _MANIFEST, body | {"sha256": _digest(body)})
        _check_size(temporary / _STATE, STATE_LIMIT, "the state")
        _check_size(temporary / _MANIFEST, MANIFEST_LIMIT, "meta")
        publication.pop_all().close()

    with ExitStack() as publication:
        temporary = processes.on_main(begin)
        if sharded:
            shard_files.write(temporary / _SHARDS, sharded)
        processes.on_main(finish)
    return target


def _content(path: Path) -> list[str]:
    return [_TENSORS, _STATE, *(f"{_SHARDS}/{shard.name}" for shard in sorted((path / _SHARDS).glob("*.safetensors")))]


def load(path: Path, *, empty: shard_files.MakeEmpty = shard_files.plain) -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint after checking that every byte is as it was written.

    Args:
        path: the checkpoint's directory.
        empty: ``(shape, dtype) -> tensor``, into which a tensor is read that was stored in shards. Where it makes
            sharded ones, every process must load.

    Returns:
        The state, with tensors on the CPU (those of ``empty`` where it puts them), and the meta.

    Raises:
        CheckpointError: it is missing, damaged or of another format; the message says which file, what was
            expected and what came.

    >>> import tempfile
    >>> load(Path(tempfile.mkdtemp()))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    kdengine.api.errors.CheckpointError: ...manifest.json: expected a file, found none
    """
    manifest = verify(path)
    try:
        tensors = load_tensors(path / _TENSORS)
        if manifest.sharded:
            tensors |= shard_files.read(path / _SHARDS, manifest.sharded, empty)
        tree = codec.decode(_read_json(path / _STATE, STATE_LIMIT), tensors)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: the state cannot be read: {error}") from error
    return tree, manifest.meta


def verify(path: Path) -> Manifest:
    """Check a checkpoint's format, sizes and hashes without loading its state.

    Args:
        path: the checkpoint's directory.

    Raises:
        CheckpointError: as `load`.

    >>> import tempfile
    >>> verify(save(Path(tempfile.mkdtemp()), 7, {}, meta={})).step
    7
    """
    manifest = _read_manifest(path / _MANIFEST)
    for name, facts in manifest.files.items():
        _verify_file(path / name, facts)
    if strange := sorted(set(_content(path)) - manifest.files.keys()):
        raise CheckpointError(f"{path}: expected no file beside those of the manifest, got {shown(strange)}")
    return manifest


def steps(directory: Path) -> list[int]:
    """List the steps of which a directory has checkpoints, damaged ones too, in rising order.

    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> _ = save(directory, 20, {}, meta={}), save(directory, 10, {}, meta={})
    >>> steps(directory)
    [10, 20]
    """
    return sorted(_by_step(directory))


def find(directory: Path, step: int) -> Path | None:
    """Find the checkpoint of a step, which may be damaged; None when there is none."""
    return _by_step(directory).get(step)


def find_latest(directory: Path, *, on_damaged: Callable[[Path, CheckpointError], None]) -> Path | None:
    """Find the newest checkpoint that is whole.

    Args:
        directory: where the checkpoints of a run are; need not exist.
        on_damaged: called with each newer one that cannot be used, and why.

    Returns:
        Its directory, or None if there is no usable one.

    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> for step in (10, 20):
    ...     path = save(directory, step, {}, meta={})
    >>> (path / "state.json").unlink()
    >>> find_latest(directory, on_damaged=lambda path, error: print("damaged:", path.name)).name
    damaged: step-00000020
    'step-00000010'
    """
    for _, path in sorted(_by_step(directory).items(), reverse=True):
        try:
            verify(path)
        except CheckpointError as error:
            on_damaged(path, error)
            continue
        return path
    return None


def prune(directory: Path, keep_last: int, keep: Collection[int] = ()) -> list[int]:
    """Remove all checkpoints but the newest ones and some named ones.

    A damaged checkpoint counts as any other, so call it after a successful `save`, and `drop_after` before
    training goes on from an older one.

    Args:
        directory: where the checkpoints of a run are.
        keep_last: how many of the newest stay, 0 or more.
        keep: steps that stay whatever their age, the best one for instance.

    Returns:
        The steps that were removed.

    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> for step in (10, 20, 30, 40):
    ...     _ = save(directory, step, {}, meta={})
    >>> prune(directory, 1, {10}), steps(directory)
    ([20, 30], [10, 40])
    """
    if keep_last < 0:
        raise ValueError(f"keep_last must be 0 or more, got {keep_last}")
    present = steps(directory)
    kept = {*keep, *present[len(present) - min(keep_last, len(present)) :]}
    return _remove(directory, [step for step in present if step not in kept])


def drop_after(directory: Path, step: int) -> list[int]:
    """Remove the checkpoints of later steps, when training goes on from an earlier one.

    Otherwise those of the abandoned course would look newest: `find_latest` would return to them, and `prune`
    would keep them and remove the new ones.

    Args:
        directory: where the checkpoints of a run are.
        step: the step from which training goes on.

    Returns:
        The steps that were removed.

    >>> import tempfile
    >>> directory = Path(tempfile.mkdtemp())
    >>> for taken in (10, 20):
    ...     _ = save(directory, taken, {}, meta={})
    >>> drop_after(directory, 10), steps(directory)
    ([20], [10])
    """
    return _remove(directory, [later for later in steps(directory) if later > step])


def _by_step(directory: Path) -> dict[int, Path]:
    if not directory.is_dir():
        return {}
    # In this order, one that was to be replaced gives way to the one that replaced it.
    return _named(directory, files.REPLACED_PREFIX) | _named(directory, "")


def _named(directory: Path, prefix: str) -> dict[int, Path]:
    found = directory.glob(f"{prefix}step-*")
    named = ((_STEP_NAME.fullmatch(path.name.removeprefix(prefix)), path) for path in found if path.is_dir())
    return {int(match[1]): path for match, path in named if match and path.name == prefix + _name(int(match[1]))}


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _remove(directory: Path, unwanted: list[int]) -> list[int]:
    for step in unwanted:
        target = directory / _name(step)
        for path in (files.replaced(target), target):  # were the new one removed first, the old one would count again
            if path.exists():
                files.discard_directory(path)
    return unwanted


def _is_whole(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def _encode_meta(meta: dict[str, Any]) -> Any:
    encoded, tensors = codec.encode(meta)
    if tensors:
        raise codec.UnsupportedState(f"meta.{next(iter(tensors))}: a tensor belongs into the state, not the meta")
    return encoded


def _describe_file(path: Path) -> dict[str, Any]:
    return {"sha256": files.sha256(path), "bytes": path.stat().st_size}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_size(path: Path, limit: int, what: str) -> None:
    size = path.stat().st_size
    if size > limit:
        raise codec.UnsupportedState(
            f"{what} takes {size:,} bytes beside its tensors, more than the {limit:,} that are read back; keep large "
            "tables as tensors"
        )


def _read_json(path: Path, limit: int) -> Any:
    try:
        return read_json(path, limit)
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error


def _read_manifest(path: Path) -> Manifest:
    try:
        body = _read_json(path, MANIFEST_LIMIT)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: expected a file, found none") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        found = body.get("format") if isinstance(body, dict) else body
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}, got {shown(found)}")
    expected, found = body.pop("sha256", None), _digest(body)
    if expected != found:
        raise CheckpointError(f"{path}: expected the sha256 {str(expected)[:64]} of its content, got {found}")
    return _parse_manifest(path, body)


def _parse_manifest(path: Path, body: dict[str, Any]) -> Manifest:
    step, described, sharded = body.get("step"), body.get("files"), body.get("sharded")
    if type(step) is not int or not isinstance(described, dict) or not described.keys() >= {_TENSORS, _STATE}:
        raise CheckpointError(f"{path}: expected a step and the files {_TENSORS} and {_STATE}, got {shown(body)}")
    strange = [name for name in described.keys() - {_TENSORS, _STATE} if not _SHARD_NAME.fullmatch(name)]
    if strange or not isinstance(sharded, dict):
        raise CheckpointError(f"{path}: expected files in {_SHARDS}/ and shapes of shards, got {shown(strange)}")
    if not all(isinstance(facts, dict) for facts in described.values()):
        raise CheckpointError(f"{path}: expected the size and sha256 of each file, got {shown(described)}")
    try:
        meta = codec.decode(body.get("meta"), {})
    except ValueError as error:
        raise CheckpointError(f"{path}: meta: {error}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: expected meta to be an object, got {shown(meta)}")
    return Manifest(step, meta, described, sharded)


def _verify_file(path: Path, expected: dict[str, Any]) -> None:
    wanted = shown(expected.get("bytes"))
    try:
        check_regular(path)
        size = path.stat().st_size
        if size != expected.get("bytes"):
            raise CheckpointError(f"{path}: expected {wanted} bytes, got {size}")
        digest = files.sha256(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected a file of {wanted} bytes, found none") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if digest != expected.get("sha256"):
        raise CheckpointError(f"{path}: expected sha256 {str(expected.get('sha256'))[:64]}, got {digest}")
