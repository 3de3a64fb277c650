"""Named tensors in a safetensors file, with what safetensors leaves out: aliases, strides, any dtype.

A tensor that stands alone is stored under its name and shape, so that any reader of safetensors finds it. Tensors
that overlap in memory are stored once: under the name of the one that spans them all, or else as a run of
bytes under the first one's name; the others are views of it. The file's metadata says so, in one JSON object:

    {"version": 1,
     "strides": {name: [...]},                     # elements; for a stored tensor that was not contiguous
     "views": {name: {"of": stored name, "offset": bytes, "dtype": ..., "shape": [...], "strides": [...]}}}

Strides say in which order the dimensions lie in memory, never how much of it there is: a stored tensor takes as many
bytes in memory as in the file. A tensor with gaps that stands alone (a column of a matrix) is stored, and comes back,
without them. Views take no memory of their own, and may be spelled out by whoever copies them: all of them together
are at most `MAX_REPEATS` times as large as the stored tensors, or `FREE_REPEATS` bytes where that is more.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdengine._files import replacing
from kdengine._untrusted import check_regular, parse_json, shown

MAX_REPEATS: Final = 256
FREE_REPEATS: Final = 64 * 2**20
_METADATA_KEY: Final = "kdengine.layout"
_VERSION: Final = 1
_MAX_DIMENSIONS: Final = 64  # torch's own limit
# What every supported release of safetensors stores; the bytes of any other dtype are stored instead.
_STORED_AS_THEY_ARE: Final = frozenset(
    {
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    }
)  # fmt: skip


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to one safetensors file, whole or not at all.

    Tensors that share memory are written once. Values, shapes, dtypes, sharing and the order of the dimensions in
    memory are kept; the device, ``requires_grad`` and the hooks of a tensor are not, nor are the gaps of one that
    stands alone.

    Args:
        path: the file to make or to replace.
        tensors: dense tensors of any dtype, shape and strides, on any device that holds data.

    Raises:
        TypeError: a tensor has no plain memory of its own (sparse, quantized, meta, sharded).
        ValueError: a name cannot stand in the file, or the views are out of all proportion to what they show.
        OSError: the disk is full or the place cannot be written; the message names the path.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
    >>> weight = torch.arange(6.0).reshape(2, 3)
    >>> save_tensors(path, {"encoder": weight, "decoder": weight.T})
    >>> loaded = load_tensors(path)
    >>> loaded["encoder"][0, 1] = 7.0
    >>> loaded["decoder"][1, 0].item(), loaded["decoder"].stride()
    (7.0, (1, 3))
    """
    plan = _Plan()
    for name, tensor in tensors.items():
        _check(name, tensor)
    for group in _overlapping(tensors):
        plan.add(group)
    check_repeats(sum(map(spelled_out, tensors.values())), sum(map(spelled_out, plan.stored.values())))
    with replacing(path) as temporary:
        try:
            save_file(plan.stored, temporary, metadata=plan.metadata())
        except SafetensorError as error:
            raise _os_error(error, path) from error


def load_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read the tensors that `save_tensors` wrote, or those of any other safetensors file.

    Every tensor owns its memory: nothing points into the file. Tensors that shared memory share it again.

    Args:
        path: the file.
        device: where the tensors are put.

    Returns:
        The tensors by name.

    Raises:
        ValueError: the file is damaged or is not such a file; the message names it and the place.
        OSError: it cannot be opened.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
    >>> save_tensors(path, {"bias": torch.ones(2, dtype=torch.bfloat16)})
    >>> load_tensors(path)
    {'bias': tensor([1., 1.], dtype=torch.bfloat16)}
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt", device=str(device)) as file:
            strides, records = _read_layout(file.metadata() or {})
            stored = {name: _restored(name, file.get_tensor(name), strides.get(name)) for name in file.keys()}  # noqa: SIM118
        views = {name: _parse_view(name, record, stored) for name, record in records.items()}
        check_repeats(sum(view.bytes for view in views.values()), sum(map(spelled_out, stored.values())))
        return {name: tensor for name, tensor in stored.items() if name not in views} | {
            name: _viewed(name, view) for name, view in views.items()
        }
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def why_not_storable(tensor: Tensor) -> str | None:
    """Say why a tensor cannot be stored, or None if it can.

    >>> why_not_storable(torch.zeros(2))
    >>> why_not_storable(torch.zeros(2, device="meta"))
    'a tensor on the meta device holds no data'
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"{_article(type(tensor).__name__)} is not a plain tensor; store its local or plain form"
    if tensor.is_meta:
        return "a tensor on the meta device holds no data"
    if tensor.is_nested or tensor.layout is not torch.strided:
        return f"{_article(str(tensor.layout))} tensor is not dense; store its parts or to_dense()"
    if tensor.is_quantized or _dtype_name(tensor.dtype).startswith("q"):
        return "a quantized tensor has a scale beside its data; store int_repr() and the scale"
    try:
        check_repeats(spelled_out(tensor), held_bytes([tensor]))
    except ValueError as error:
        return f"{error}; store its contiguous()"
    return None


def check_repeats(wanted: int, held: int) -> None:
    """Refuse tensors that show the same memory again and again, out of all proportion.

    Args:
        wanted: bytes of the tensors when each is spelled out.
        held: bytes that there really are.

    Raises:
        ValueError: they are more than `MAX_REPEATS` times as many, and more than `FREE_REPEATS`.

    >>> check_repeats(2**40, held=4)
    Traceback (most recent call last):
        ...
    ValueError: tensors of 1,099,511,627,776 bytes over 4 bytes of memory are out of all proportion
    """
    if wanted > max(FREE_REPEATS, MAX_REPEATS * held):
        raise ValueError(f"tensors of {wanted:,} bytes over {held:,} bytes of memory are out of all proportion")


def spelled_out(tensor: Tensor) -> int:
    """Bytes of a tensor when every element has a place of its own.

    >>> spelled_out(torch.zeros(1).expand(10))
    40
    """
    return tensor.numel() * tensor.itemsize


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory behind tensors, of which several may share it; rather too few than too many.

    >>> row = torch.zeros(10)
    >>> held_bytes([row, row[2:], row[:1].expand(100)])
    40
    """
    by_storage: dict[int, int] = {}
    for tensor in tensors:
        held = min(tensor.numel(), _extent(tensor.shape, tensor.stride())) * tensor.itemsize
        place = tensor.untyped_storage().data_ptr()
        by_storage[place] = max(held, by_storage.get(place, 0))
    return sum(by_storage.values())


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _check(name: str, tensor: Tensor) -> None:
    reason = why_not_storable(tensor)
    if reason is not None:
        raise TypeError(f"tensor {name!r} cannot be stored: {reason}")
    if name == "__metadata__" or not name.isprintable():
        raise ValueError(f"{name!r} cannot name a stored tensor; use printable text other than '__metadata__'")


def _os_error(error: SafetensorError, path: Path) -> OSError:
    # The library reports a full disk in words only: "I/O error: No space left on device (os error 28)".
    message = str(error)
    code = re.search(r"\(os error (\d+)\)", message)
    return OSError(int(code[1]), message, str(path)) if code else OSError(f"{path}: {message}")


@dataclass(frozen=True)
class _Span:
    """A tensor and the bytes of its storage that it touches, from start to before stop."""

    name: str
    tensor: Tensor
    start: int
    stop: int

    @property
    def is_tight(self) -> bool:
        """Whether its elements are as many bytes as it spans, each in a place of its own."""
        size = self.tensor.numel() * self.tensor.itemsize
        return size == self.stop - self.start and _is_injective(self.tensor.shape, self.tensor.stride())


def _span(name: str, tensor: Tensor) -> _Span:
    start = int(tensor.storage_offset()) * tensor.itemsize
    return _Span(name, tensor, start, start + _extent(tensor.shape, tensor.stride()) * tensor.itemsize)


def _extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Number of elements from the first that a tensor touches to the last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _is_injective(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether no two indices meet in one place (sufficient; strange strides may be refused)."""
    reach = 0
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return False
            reach += (size - 1) * stride
    return True


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill its memory, each in a place of its own, in whatever order.

    >>> is_dense(torch.zeros(2, 3).t()), is_dense(torch.zeros(1).expand(3)), is_dense(torch.zeros(4)[::2])
    (True, False, False)
    """
    return _span("", tensor).is_tight


def _without_gaps(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor whose dimensions lie in the same order, with nothing between them."""
    if _extent(shape, strides) == math.prod(shape):
        return tuple(strides)
    dense, reach = [0] * len(shape), 1
    for dimension in sorted(range(len(shape)), key=lambda d: (strides[d], shape[d])):
        dense[dimension] = reach
        reach *= shape[dimension]
    return tuple(dense)


def _default_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return torch.empty(tuple(shape), device="meta").stride()


def _overlapping(tensors: Mapping[str, Tensor]) -> Iterator[list[_Span]]:
    """Group the tensors so that those which share bytes are together; the groups come in order of memory."""
    by_storage: dict[tuple[torch.device, int], list[_Span]] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().resolve_conj().resolve_neg()
        span = _span(name, plain)
        if span.start == span.stop:
            yield [span]
            continue
        by_storage.setdefault((plain.device, plain.untyped_storage().data_ptr()), []).append(span)
    for spans in by_storage.values():
        yield from _runs(spans)


def _runs(spans: list[_Span]) -> Iterator[list[_Span]]:
    group: list[_Span] = []
    stop = 0
    for span in sorted(spans, key=lambda span: span.start):
        if group and span.start >= stop:
            yield group
            group = []
        stop = max(stop, span.stop) if group else span.stop
        group.append(span)
    yield group


class _Plan:
    """What goes into the file: the tensors as safetensors can hold them, and how to make ours from them."""

    def __init__(self) -> None:
        self.stored: dict[str, Tensor] = {}
        self.strides: dict[str, list[int]] = {}
        self.views: dict[str, dict[str, Any]] = {}

    def add(self, group: list[_Span]) -> None:
        base = _base(group)
        if base is None:
            name, start = self._add_bytes(group)
        else:
            name, start = base.name, base.start
            self._add_tensor(base)
        for span in group:
            if span is not base:
                self.views[span.name] = {
                    "of": name,
                    "offset": span.start - start,
                    "dtype": _dtype_name(span.tensor.dtype),
                    "shape": list(span.tensor.shape),
                    "strides": list(span.tensor.stride()),
                }

    def metadata(self) -> dict[str, str]:
        """One key only: the library writes several in an order of chance, and equal states make equal files."""
        if not self.strides and not self.views:
            return {"format": "pt"}  # what other readers look for
        layout = {"version": _VERSION, "strides": self.strides, "views": self.views}
        return {_METADATA_KEY: json.dumps(layout, sort_keys=True)}

    def _add_tensor(self, span: _Span) -> None:
        self.stored[span.name] = span.tensor.contiguous().cpu()
        strides = _without_gaps(span.tensor.shape, span.tensor.stride())
        if strides != _default_strides(span.tensor.shape):
            self.strides[span.name] = list(strides)

    def _add_bytes(self, group: list[_Span]) -> tuple[str, int]:
        # Views of several dtypes need their places aligned in the copy as they were in the storage.
        start = min(span.start for span in group)
        start -= start % math.lcm(*(span.tensor.itemsize for span in group))
        stop = max(span.stop for span in group)
        storage = group[0].tensor.untyped_storage()
        octets = torch.empty(0, dtype=torch.uint8, device=group[0].tensor.device)
        octets.set_(storage, start, (stop - start,), (1,))
        self.stored[group[0].name] = octets.cpu()
        return group[0].name, start


def _base(group: list[_Span]) -> _Span | None:
    """The tensor that can be stored as it is and holds all bytes of the group, if there is one."""
    start, stop = min(span.start for span in group), max(span.stop for span in group)
    for span in group:
        if span.tensor.dtype not in _STORED_AS_THEY_ARE or (span.start, span.stop) != (start, stop):
            continue
        # Alone, a view with gaps (one column of a matrix) need not bring what lies between.
        if span.is_tight or (len(group) == 1 and _is_injective(span.tensor.shape, span.tensor.stride())):
            aligned = all((other.start - start) % other.tensor.itemsize == 0 for other in group)
            if aligned:
                return span
    return None


def _read_layout(metadata: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    if _METADATA_KEY not in metadata:
        return {}, {}
    try:
        layout = parse_json(metadata[_METADATA_KEY])
    except ValueError as error:
        raise ValueError(f"metadata {_METADATA_KEY!r}: {error}") from error
    version = layout.get("version") if isinstance(layout, dict) else None
    if version != _VERSION:
        raise ValueError(f"metadata {_METADATA_KEY!r}: expected version {_VERSION}, got {shown(version)}")
    strides, views = layout.get("strides"), layout.get("views")
    if not isinstance(strides, dict) or not isinstance(views, dict):
        raise ValueError(f"metadata {_METADATA_KEY!r}: expected the objects 'strides' and 'views'")
    return strides, views


def _restored(name: str, tensor: Tensor, strides: Any) -> Tensor:
    """Copy a stored tensor out of the file's memory, with its dimensions in the order that they had."""
    shape = tuple(tensor.shape)
    wanted = _default_strides(shape) if strides is None else _integers(name, "strides", strides)
    if len(wanted) != len(shape) or not _is_injective(shape, wanted):
        raise ValueError(f"tensor {name!r}: strides {list(wanted)} do not fit the shape {list(shape)}")
    # Gaps, which the first version kept, would let a small file ask for any amount of memory.
    dense = _without_gaps(shape, wanted)
    try:
        return torch.empty_strided(shape, dense, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"tensor {name!r}: strides {list(wanted)}: {error}") from error


@dataclass(frozen=True)
class _View:
    """A checked record of a view; the offset counts elements."""

    base: Tensor
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size when every element has a place of its own."""
        return math.prod(self.shape) * self.dtype.itemsize


def _parse_view(name: str, record: Any, stored: Mapping[str, Tensor]) -> _View:
    if not isinstance(record, dict) or record.keys() != {"of", "offset", "dtype", "shape", "strides"}:
        raise ValueError(f"tensor {name!r}: the record of its view is incomplete")
    if not isinstance(record["of"], str) or record["of"] not in stored:
        raise ValueError(f"tensor {name!r} is a view of {shown(record['of'])}, which is not in the file")
    base = stored[record["of"]]
    dtype = dtype_named(record["dtype"])
    shape, strides = _integers(name, "shape", record["shape"]), _integers(name, "strides", record["strides"])
    (offset,) = _integers(name, "offset", [record["offset"]])
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS or offset % dtype.itemsize:
        raise ValueError(f"tensor {name!r}: the shape, strides and offset of its view do not fit together")
    # set_ would enlarge a storage that is too small instead of refusing.
    if offset + _extent(shape, strides) * dtype.itemsize > base.untyped_storage().nbytes():
        raise ValueError(f"tensor {name!r} reaches beyond the end of {record['of']!r}")
    return _View(base, offset // dtype.itemsize, dtype, shape, strides)


def _viewed(name: str, view: _View) -> Tensor:
    try:
        empty = torch.empty(0, dtype=view.dtype, device=view.base.device)
        tensor = empty.set_(view.base.untyped_storage(), view.offset, view.shape, view.strides)
        _check(name, tensor)
    except (RuntimeError, OverflowError, TypeError) as error:  # a dtype or a size that no tensor can have
        raise ValueError(f"tensor {name!r}: {error}") from error
    return tensor


def _integers(name: str, what: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**63 for item in value):
        raise ValueError(f"tensor {name!r}: {what} must be non-negative integers, got {shown(value)}")
    return tuple(value)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_named(name: Any) -> torch.dtype:
    """Find a dtype by the name that torch prints, without "torch.".

    Raises:
        ValueError: torch has no such dtype.

    >>> dtype_named("bfloat16")
    torch.bfloat16
    """
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"expected the name of a torch dtype, got {shown(name)}")
    return dtype
