"""An accelerator's rules without an accelerator: which operations would wait for it.

Tensors of the meta device have shapes and no values, so whatever needs a value fails there as it waits on an
accelerator. What waits and works on meta nevertheless, copies from the host and a few solvers, is known by name.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

READS = "it reads values on the host; keep them in tensors, for instance with torch.where"
SIZES = "the size of its result depends on values; use a mask, torch.where or a fixed size"
CHECKS = "it asks on the host whether it succeeded; use the _ex variant"
COPIES = "it copies data from the host; make it with torch.full or arange on the device, or keep it in a buffer"
MIXES = "it mixes a tensor of the host with one of the device; make both on the student's device"

WAITING = {
    **dict.fromkeys(("_local_scalar_dense", "equal", "is_nonzero", "item", "allclose"), READS),
    **dict.fromkeys(
        ("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount"), SIZES
    ),
    **dict.fromkeys(
        ("_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "linalg_matrix_rank"),
        CHECKS,
    ),
}
"""Operators that wait, and why."""

FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
TO_HOST = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)


class Waits(RuntimeError):  # noqa: N818
    """An operation would wait for an accelerator; the message names it and says why."""


class Unavailable(RuntimeError):  # noqa: N818
    """An operation that has no meta kernel: nothing is known of it."""


@contextmanager
def watched() -> Iterator[None]:
    """Refuse whatever would wait for an accelerator.

    Raises:
        Waits: something would.
        Unavailable: an operation cannot be tried like this.
    """
    functions = _Functions()
    try:
        with functions, _Operators(functions):
            yield
    except NotImplementedError as error:
        raise Unavailable(str(error).splitlines()[0]) from error


class _Functions(TorchFunctionMode):
    """Knows by which function an operator was called, and refuses functions that reach no operator."""

    called = ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.called = resolve_name(func) or getattr(func, "__name__", str(func))
        if func in TO_HOST and args[0].is_meta:
            raise Waits(f"{self.called} waits: {READS}")
        result = func(*args, **kwargs)
        if func in FROM_DATA and isinstance(result, Tensor) and result.is_meta and not _is_tensor(func, args, kwargs):
            raise Waits(f"{self.called} waits: {COPIES}")
        return result


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operators that wait."""

    def __init__(self, functions: _Functions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.functions = functions

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        reason = _reason(name, args, kwargs)
        if reason is not None:
            raise Waits(f"{self.functions.called} (aten::{name}) waits: {reason}")
        return func(*args, **kwargs)


def _reason(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why an operator waits on an accelerator, or None."""
    tensors = list(_tensors([args, kwargs]))
    on_device = any(tensor.is_meta for tensor in tensors)
    if name in ("_to_copy", "copy_"):
        return _copy_reason(name, args, kwargs)
    if not on_device:
        return None
    if name in WAITING:
        return WAITING[name]
    if any(not tensor.is_meta and tensor.ndim for tensor in tensors):
        return MIXES
    if name in ("index", "index_put", "index_put_", "_index_put_impl_") and _selects(args):
        return SIZES
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return SIZES
    return None


def _copy_reason(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if name == "copy_":
        source, target = args[1].device, args[0].device
        patient = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
    else:
        source = args[0].device
        target = torch.device(kwargs.get("device") or source)
        patient = bool(kwargs.get("non_blocking"))
    if source.type == target.type:
        return None
    if target.type != "meta":
        return READS
    return None if patient else COPIES


def _selects(args: tuple[Any, ...]) -> bool:
    """Whether an index is a mask. One number put where a mask says is a fill, which does not wait."""
    masks = any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return masks and not (len(args) > 2 and args[2].numel() == 1)


def _is_tensor(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether what a tensor is made of is a tensor already."""
    given = args[1:] if func is Tensor.new_tensor else args
    data = given[0] if given else kwargs.get("data")
    return isinstance(data, Tensor) and data.is_meta


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def place_of(error: BaseException) -> str:
    """Where in the loss's own code an error arose: ``" at brier.py:24"``; nothing where that cannot be told."""
    homes = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(homes)]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
