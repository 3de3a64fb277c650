"""Tensors inside nested structures: mappings, sequences, named tuples, dataclasses, objects with ``.to()``.

The one place that knows what a batch's inputs, or a model's outputs, may be made of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from kdengine.api.errors import ConfigurationError

_CONSTANTS = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)
"""What belongs to a whole batch rather than to its items, and may stand beside its tensors."""
_MOST_SHOWN = 8
"""Most elements of a sequence that a description lists one by one."""
_LONGEST = 40
"""Most characters of a value that a description shows."""


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a structure, in its order."""
    if isinstance(value, Tensor):
        yield value
        return
    for _, part in children(value):
        yield from tensors(part)


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of one level of a structure, each with the piece of Python that leads to it.

    >>> list(children({"a": 1}))
    [("['a']", 1)]
    """
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, tuple | list):
        yield from ((f"[{position}]", part) for position, part in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in fields(value))


def rebuild(value: Any, parts: Sequence[Any]) -> Any:
    """The same kind of structure with other parts, in the order of :func:`children`."""
    if isinstance(value, Mapping):
        return _rebuild_mapping(value, dict(zip(value, parts, strict=True)))
    kind: Any = type(value)
    if isinstance(value, tuple) and hasattr(kind, "_make"):
        return kind._make(parts)
    if isinstance(value, tuple | list):
        return _rebuild_sequence(value, parts)
    made = copy.copy(value)
    for field, part in zip(fields(value), parts, strict=True):
        object.__setattr__(made, field.name, part)
    return made


def _rebuild_sequence(value: Any, parts: Sequence[Any]) -> Any:
    try:
        return type(value)(parts)
    except TypeError:  # a subclass that is made in another way
        return tuple(parts) if isinstance(value, tuple) else list(parts)


def _rebuild_mapping(value: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    if type(value) is dict or not isinstance(value, MutableMapping):
        return parts
    made = copy.copy(value)
    for key, part in parts.items():
        made[key] = part
    return made


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """The same structure with every tensor changed; anything that is no structure stays as it is.

    >>> map_tensors(lambda tensor: tensor + 1, {"a": (torch.tensor(1), "text")})
    {'a': (tensor(2), 'text')}
    """
    if isinstance(value, Tensor):
        return change(value)
    parts = [part for _, part in children(value)]
    return rebuild(value, [map_tensors(change, part) for part in parts]) if parts else value


def move(value: Any, device: torch.device) -> Any:
    """The same structure on a device; an object with ``.to(device)``, such as a graph, moves itself."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if not isinstance(value, Mapping) and callable(to := getattr(value, "to", None)):
        return to(device) if isinstance(value, tuple) else _moved(copy.copy(value), device)  # some move in place
    parts = [part for _, part in children(value)]
    return rebuild(value, [move(part, device) for part in parts]) if parts else value


def _moved(value: Any, device: torch.device) -> Any:
    moved = value.to(device)
    return value if moved is None else moved


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """The same structure with floating-point tensors in another precision; None leaves them."""
    if dtype is None:
        return value
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor with a dimension inside a structure, or None."""
    return next((tensor for tensor in tensors(value) if tensor.ndim), None)


def count_items(inputs: Any) -> int:
    """Number of items in a batch: the first dimension of the first tensor found in ``inputs``.

    Raises:
        ConfigurationError: there is no such tensor, or a list of tensors has no common first dimension.
    """
    if isinstance(inputs, PackedSequence):
        return int(inputs.batch_sizes[0])
    tensor = inputs if isinstance(inputs, Tensor) else first_tensor(inputs)
    if tensor is None or tensor.ndim == 0:
        raise ConfigurationError(
            f"cannot count the items of a batch whose inputs are {describe(inputs)}: expected a tensor, or a "
            "mapping or sequence with a tensor, whose first dimension is the batch. Pass Engine(batch=fn), where "
            "fn(item) returns kdengine.Batch(inputs, labels, size=number of items)"
        )
    for path, ragged in _ragged_lists(inputs):
        raise ConfigurationError(
            f"cannot count the items of a batch: inputs{path} is a list of {len(ragged)} tensors whose first "
            f"dimensions differ ({', '.join(str(tuple(each.shape)) for each in ragged[:3])}, ...). A list with one "
            "tensor for each item needs its size: Engine(batch=fn), where fn(item) returns "
            "kdengine.Batch([images], labels, size=len(images)); the models then get the list as their one input"
        )
    return tensor.size(0)


def _ragged_lists(value: Any, path: str = "") -> Iterator[tuple[str, list[Tensor]]]:
    """Lists of nothing but tensors, without a common first dimension: items that were not stacked."""
    if isinstance(value, list) and value and all(isinstance(part, Tensor) and part.ndim for part in value):
        if len({part.size(0) for part in value}) > 1:
            yield path, value
        return
    for step, part in children(value):
        if not isinstance(part, Tensor):
            yield from _ragged_lists(part, path + step)


def describe(value: Any) -> str:
    """A value's type and fields in a few words, for error messages.

    >>> describe({"a": 1})
    "a dict with keys ['a']"
    """
    name = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {name} with keys {list(value)}"
    if isinstance(value, tuple | list):
        kinds = [type(item).__name__ for item in value]
        return f"a {name} of {len(value)}: {kinds if len(kinds) <= _MOST_SHOWN else sorted(set(kinds))}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {name} {tuple(value.shape)} {value.dtype}"
    if value is None:
        return "None"
    if isinstance(value, str | int | float):
        return f"a {name} {value!r:.{_LONGEST}}"
    return f"a {name} with fields {sorted(vars(value)) if hasattr(value, '__dict__') else []}"


def slice_items(value: Any, first: int, last: int, size: int, path: str = "inputs") -> Any:
    """Items ``first`` to ``last`` of a structure that holds ``size`` of them.

    A tensor is cut along its first dimension, a list with one element for each item is cut itself; a number, a text
    or a 0-dim tensor belongs to the whole batch, and stays.

    Args:
        value: a structure.
        first: the first item.
        last: the one behind the last.
        size: how many items the whole has.
        path: what the value is called in an error.

    Raises:
        ConfigurationError: a part can be neither cut nor kept; it is named.
    """
    kind = _only(_kinds(value, size, path), value, size, path)
    if kind == "constant" or (first, last) == (0, size):
        return value
    if kind == "items":
        return value[first:last]
    return rebuild(value, [slice_items(part, first, last, size, path + step) for step, part in children(value)])


def join_items(values: Sequence[Any], sizes: Sequence[int], path: str = "inputs") -> Any:
    """One structure with the items of several: undo :func:`slice_items`.

    Args:
        values: structures of one form.
        sizes: how many items each holds.
        path: what they are called in an error.

    Raises:
        ConfigurationError: a part cannot be joined, or the structures differ; the part is named.
    """
    each = [_kinds(value, size, path) for value, size in zip(values, sizes, strict=True)]
    kinds = set.intersection(*each)
    if kinds == {"items", "structure"} and len({len(value) for value in values}) > 1:
        kinds = {"items"}
    steps = {tuple(step for step, _ in children(value)) for value in values}
    if not kinds or (kinds == {"structure"} and len(steps) > 1) or len({type(value) for value in values}) > 1:
        forms = " and ".join(dict.fromkeys(describe(value) for value in values))
        raise _cannot(path, f"is not of one form in the micro-batches of a step: {forms}")
    kind = _only(kinds, values[0], sizes[0], path)
    if kind == "constant":
        if any(not _equal(values[0], value) for value in values[1:]):
            raise _cannot(path, f"differs between the micro-batches of a step ({values[0]!r}, then another value)")
        return values[0]
    if kind == "items":
        return torch.cat(list(values)) if isinstance(values[0], Tensor) else _chain(values)
    columns = zip(*(children(value) for value in values), strict=True)
    return rebuild(
        values[0], [join_items([part for _, part in column], sizes, path + column[0][0]) for column in columns]
    )


def _chain(values: Sequence[Any]) -> Any:
    return type(values[0])(element for value in values for element in value)


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def _kinds(value: Any, size: int, path: str) -> set[str]:
    """What a value may be: a ``"constant"``, something for each of the ``"items"``, a ``"structure"`` of these."""
    if isinstance(value, _CONSTANTS) or (isinstance(value, Tensor) and value.ndim == 0):
        return {"constant"}
    if isinstance(value, Tensor):
        if value.size(0) == size:
            return {"items"}
        raise _cannot(path, f"is {describe(value)}, without a first dimension of the batch's {size} items")
    if isinstance(value, PackedSequence) or not (isinstance(value, Mapping | tuple | list) or is_dataclass(value)):
        raise _cannot(path, f"is {describe(value)}, which kdengine can neither cut nor join")
    if (
        type(value) not in (list, tuple) or len(list(children(value))) != size or path == "inputs"
    ):  # inputs themselves are positions
        return {"structure"}
    inside = list(tensors(value))
    whole = bool(inside) and all(tensor.ndim and tensor.size(0) == size for tensor in inside)
    return {"items", "structure"} if whole else {"items"}


def _only(kinds: set[str], value: Any, size: int, path: str) -> str:
    """The one kind that is left; either does for a single item."""
    if len(kinds) > 1 and size > 1:
        raise _cannot(
            path,
            f"is {describe(value)} with tensors of {size} rows, and the batch has {size} items: it cannot be told "
            "whether it has one element for each item; use a mapping, or stack it",
        )
    return "structure" if "structure" in kinds else next(iter(kinds))


def _cannot(path: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"a batch transform (or the share of one of several processes) needs a batch that can be cut into items and "
        f"put together, but {path} {reason}. Leave batch_transforms out (or accumulate=1 with them), or let "
        "Engine(batch=fn) give tensors with a row for each item"
    )


def positions(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first item of each part, and the one behind its last.

    >>> list(positions([2, 3]))
    [(0, 2), (2, 5)]
    """
    yield from pairwise(sum(sizes[:count]) for count in range(len(sizes) + 1))
