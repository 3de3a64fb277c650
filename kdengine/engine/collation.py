"""Items that make no batch: which two differ, and in what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from kdengine.api import ConfigurationError
from kdengine.api.batch import describe


def collated(collate: Callable[[list[Any]], Any], items: list[Any], positions: Sequence[int]) -> Any:
    """Make a batch of items.

    Args:
        collate: torch's own, or one of the user's, whose exceptions pass as they are.
        items: what the data set gave.
        positions: of the items in the data set, for messages.

    Raises:
        ConfigurationError: the items differ in shape, type or structure.
    """
    try:
        return collate(items)
    except Exception as error:
        found = _difference(items, positions) if collate is default_collate else None
        if found is None:
            raise
        raise ConfigurationError(
            f"the items of a batch do not fit each other: {found}. Make them alike (a resize or a crop in "
            "data.transforms), or give kdengine.loader a collate that pads"
        ) from error


def _difference(items: list[Any], positions: Sequence[int]) -> str | None:
    """The first difference between an item and the first one, in words."""
    first = dict(_leaves(items[0]))
    for item, position in zip(items[1:], positions[1:], strict=True):
        parts = dict(_leaves(item))
        for place in [*first, *parts]:
            here, there = parts.get(place, "absent"), first.get(place, "absent")
            if here != there:
                where = f"{place} of " if place else ""
                return f"{where}item {position} is {here}, {where}item {positions[0]} is {there}"
    return None


def _leaves(item: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """What an item consists of, by place."""
    if isinstance(item, Mapping):
        for key, value in item.items():
            yield from _leaves(value, f"{place}[{key!r}]")
    elif isinstance(item, tuple | list):
        for position, value in enumerate(item):
            yield from _leaves(value, f"{place}[{position}]")
    else:
        yield place, describe(item) if isinstance(item, Tensor) or item is None else _kind(item)


def _kind(item: Any) -> str:
    shape = getattr(item, "shape", None)
    return f"a {type(item).__name__}" if shape is None else f"a {type(item).__name__} of shape {tuple(shape)}"
