"""Notice a data set whose random draws nobody can seed: it holds a generator of its own."""

from __future__ import annotations

import random as python_random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdengine.api.structure import children
from kdengine.engine import random

_MOST_OBJECTS = 2000
_LONGEST = 100
"""A longer sequence holds data, not transforms."""
_SEEDED = ("builtins", "torch", "torchvision")
"""Modules whose classes draw from generators that kdengine seeds."""


def draws_differ(dataset: Any, sample: Callable[[], Any]) -> bool:
    """Whether two draws of one item under one seed differ, or would have with other luck.

    Draws twice. A generator that the data set holds has then moved on twice, unless it is seeded for each item; it is
    put back where it was, so that the fit sees what it would have seen.

    Args:
        dataset: may hold generators, or a transform that does.
        sample: draws one item under the seed of that item.
    """
    generators = _found(dataset)
    before = [state_of(generator) for generator in generators]
    with random.preserved():
        first = sample()
        between = [state_of(generator) for generator in generators]
        second = sample()
        after = [state_of(generator) for generator in generators]
        for generator, state in zip(generators, before, strict=True):
            put_back(generator, state)
    return not (same(first, second) and same(between, after))


def _found(dataset: Any) -> list[Any]:
    """The generators that can be found: looking for them must not end a fit, whatever an object raises when asked."""
    found: list[Any] = []
    with suppress(Exception):
        found.extend(own_generators(dataset))
    return found


def own_generators(root: Any) -> Iterator[Any]:
    """Random generators that an object holds or refers to: in attributes, containers, closures, names of its module."""
    queue, seen = deque([root]), {id(root)}
    while queue and len(seen) < _MOST_OBJECTS:
        value = queue.popleft()
        if isinstance(value, torch.Generator | python_random.Random | np.random.Generator | np.random.RandomState):
            yield value
            continue
        for part in _referred(value):
            if id(part) not in seen and not isinstance(part, type | ModuleType | Tensor | np.ndarray | str | bytes):
                seen.add(id(part))
                queue.append(part)


def _referred(value: Any) -> Iterator[Any]:
    """What one object refers to."""
    if isinstance(value, dict | list | tuple | set | frozenset):  # of another mapping, values may be read from a disk
        if len(value) <= _LONGEST:
            yield from value.values() if isinstance(value, dict) else value
        return
    if isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell))
        yield from (value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__)
    elif isinstance(held := getattr(value, "__dict__", None), dict):
        yield from held.values()
        for kind in type(value).__mro__:
            if not kind.__module__.startswith(_SEEDED):
                yield from map(_function, vars(kind).values())


def _function(member: Any) -> Any:
    """The function behind what a class has."""
    if isinstance(member, property):
        return member.fget
    return member.__func__ if isinstance(member, staticmethod | classmethod) else member


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:  # a variable of an outer function that has no value yet
        return True


def state_of(generator: Any) -> Any:
    """Where a generator stands."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, python_random.Random):
        return None if isinstance(generator, python_random.SystemRandom) else generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state(legacy=False)


def put_back(generator: Any, state: Any) -> None:
    """Let a generator stand where it stood."""
    if isinstance(generator, torch.Generator | np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif state is not None:
        generator.setstate(state)


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots included."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    found = {name: getattr(value, name) for name in slots if not name.startswith("_") and hasattr(value, name)}
    return {**found, **getattr(value, "__dict__", {})}


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal throughout; what cannot be compared counts as equal, NaN equals NaN."""
    if type(one) is not type(other):
        return False
    try:
        if isinstance(one, Tensor | np.ndarray):
            alike = (one == other) | ((one != one) & (other != other))
            return one.shape == other.shape and one.dtype == other.dtype and bool(alike.all())
        parts, others = list(children(one)), list(children(other))
        if parts or others:
            return len(parts) == len(others) and all(
                step == twin and same(part, value) for (step, part), (twin, value) in zip(parts, others, strict=True)
            )
        if getattr(type(one), "__eq__", None) is object.__eq__:
            return one is other or same(_fields(one), _fields(other))
        return bool(one == other) or bool(one != one)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return True
