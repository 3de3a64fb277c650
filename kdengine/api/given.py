"""What a component was made with: the arguments of its constructor as plain values, for the record of a run."""

from __future__ import annotations

import enum
import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Self

import numpy as np
import torch
from torch import nn

LONGEST: Final = 200
"""Most characters of a value that is kept as it is; of a longer one a digest is."""


class Given:
    """Remember the plain values among the arguments that an object was made with.

    They are kept as values, so that nothing is held alive and copies and pickles carry them along.
    """

    _made_with: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments before the constructor sees them."""
        made = super().__new__(cls)
        object.__setattr__(made, "_made_with", bound(cls, args, kwargs))
        return made


def bound(cls: type[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a constructor's arguments, with its defaults; none where they do not fit: it says so itself."""
    try:
        found = inspect.signature(cls.__init__).bind(None, *args, **kwargs)
    except (TypeError, ValueError):
        return {}
    found.apply_defaults()
    _, *names = found.arguments
    return {name: value for name in names if (value := plain(found.arguments[name])) is not UNKNOWN}


def settings(component: Given) -> dict[str, Any]:
    """What a component was made with, up to date: an attribute of an argument's name has the last word.

    A schedule that stands behind an attribute (``schedules``) is described itself.
    """
    schedules, own = component.__dict__.get("schedules", {}), component.__dict__
    found = dict(component._made_with)
    for name in found:
        value = plain(schedules.get(name, own.get(name, UNKNOWN)))
        if value is not UNKNOWN:
            found[name] = value
    return found


class _Unknown:
    """Stands for a value that is no plain one."""


UNKNOWN: Final = _Unknown()


def plain(value: Any) -> Any:
    """A value as JSON could hold it, or UNKNOWN: numbers, strings, flags, types of numbers, and containers of these.

    Modules, schedules and partial functions are described by their class and plain attributes; tensors, functions and
    devices are not.

    >>> plain((1, 0.5, "a", None)), plain(torch.float16), plain(torch.ones(1)) is UNKNOWN
    ([1, 0.5, 'a', None], 'torch.float16', True)
    """
    found = _plain(value, set())
    if found is UNKNOWN or len(text := json.dumps(found, sort_keys=True)) <= LONGEST:
        return found
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _plain(value: Any, seen: set[int]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, list | tuple):
        items = [_plain(item, seen) for item in value]
        return UNKNOWN if UNKNOWN in items else items
    if isinstance(value, Mapping):
        return _mapping(value, seen)
    return _object(value, seen)


def _mapping(value: Mapping[Any, Any], seen: set[int]) -> Any:
    found = {str(key): _plain(item, seen) for key, item in value.items()}
    return UNKNOWN if UNKNOWN in found.values() else found


def _object(value: Any, seen: set[int]) -> Any:
    """A component or module by its class and what of it is plain; one that comes again, by its class alone.

    An object may hold itself (the graph of an exported model does).
    """
    if not isinstance(value, partial | Given | nn.Module):
        return UNKNOWN
    if id(value) in seen:
        return {"use": type(value).__name__}
    seen.add(id(value))
    if isinstance(value, partial):
        return {"use": getattr(value.func, "__name__", "function"), **_known(value.keywords, seen)}
    if isinstance(value, Given):
        return {"use": type(value).__name__, **_known(value._made_with, seen)}
    own = {name: item for name, item in value.__dict__.items() if name != "training" and not name.startswith("_")}
    return {"use": type(value).__name__, **_known(own, seen)}


def _known(values: Mapping[str, Any], seen: set[int]) -> dict[str, Any]:
    return {name: found for name, item in values.items() if (found := _plain(item, seen)) is not UNKNOWN}
