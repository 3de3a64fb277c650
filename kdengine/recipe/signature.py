"""Components' arguments against their signatures: unknown, missing and mistyped ones, before anything runs."""

from __future__ import annotations

import inspect
import math
import re
import typing
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from kdengine.api.errors import nearest
from kdengine.api.schedule import ScalarMarker
from kdengine.recipe.problems import Problem


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a component.

    Attributes:
        name: its name.
        annotation: its type, ``Any`` when it is not annotated.
        default: its default; ``inspect.Parameter.empty`` when it is required.
    """

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether the recipe must give it."""
        return self.default is inspect.Parameter.empty

    @property
    def is_scalar(self) -> bool:
        """Whether it takes a number or a schedule."""
        return mentions_scalar(self.annotation)

    @property
    def type_name(self) -> str:
        """Its type in words."""
        if self.is_scalar:
            return "number or schedule"
        return _MODULE.sub("", inspect.formatannotation(self.annotation))


_MODULE = re.compile(r"(?:\b[a-z_]\w*\.)+(?=[A-Z])")


def mentions_scalar(annotation: Any) -> bool:
    """Whether an annotation is ``Scalar`` or a union with it."""
    if ScalarMarker in getattr(annotation, "__metadata__", ()):
        return True
    return any(mentions_scalar(inner) for inner in typing.get_args(annotation))


def arguments(factory: Callable[..., Any], *, skip: int = 0) -> dict[str, Argument]:
    """The keyword arguments of a component, without the first ``skip`` that its caller gives by position."""
    parameters = list(inspect.signature(factory).parameters.values())[skip:]
    hints = _hints(factory)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        parameter.name: Argument(parameter.name, hints.get(parameter.name, Any), parameter.default)
        for parameter in parameters
        if parameter.kind in kinds
    }


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    target = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError):  # a stranger's annotations that only a type checker can resolve
        return {}


def check_arguments(
    known: Mapping[str, Argument],
    given: Mapping[str, Any],
    path: tuple[str, ...],
    *,
    supplied: Container[str] = (),
    beside: Iterable[str] = (),
) -> tuple[dict[str, Any], list[Problem]]:
    """Validate a table's own keys against a component's arguments.

    Args:
        known: the component's arguments.
        given: the table's keys.
        path: of the table in the recipe.
        supplied: arguments that the caller fills in where the table does not.
        beside: keys of the table that are no arguments of the component, for suggestions.

    Returns:
        the validated arguments, and every problem.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            problems.append(Problem((*path, name), f"unknown argument; {nearest(name, [*known, *beside])}"))
            continue
        try:
            values[name] = check_value(known[name].annotation, value)
        except ValueError as error:
            problems.append(Problem((*path, name), f"expected {known[name].type_name}: {_said(error)}", value))
    for name, argument in known.items():
        if argument.required and name not in given and name not in supplied:
            problems.append(Problem((*path, name), f"this argument is required ({argument.type_name})"))
    return values, problems


def _said(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
    return str(error)


def check_value(annotation: Any, value: Any) -> Any:
    """A TOML value as the annotated type; a string or a boolean is never taken for a number.

    Raises:
        ValueError: it is not of that type.
    """
    if mentions_scalar(annotation):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"this is a {type(value).__name__}" if value == value else "this is not a number")
        return value
    adapter = _adapter(annotation)
    if adapter is None:
        return value
    made = adapter.validate_python(value)
    if isinstance(made, Iterator):  # pydantic checks an Iterable's items when they are read, and it is read once
        made = list(made)
    if converted := _find_converted(value, made):
        raise ValueError(f"{converted[0]!r} is a {type(converted[0]).__name__}")
    return made


def _find_converted(given: Any, made: Any) -> list[Any]:
    """Plain values that became another type; a whole number may become a float, a string a path or an enum."""
    if isinstance(given, list) and isinstance(made, list | tuple):
        return [value for pair in zip(given, made, strict=False) for value in _find_converted(*pair)]
    if isinstance(given, dict) and isinstance(made, dict):
        return [value for key in given if key in made for value in _find_converted(given[key], made[key])]
    widened = type(given) is int and type(made) is float
    plain = type(made) in (bool, int, float, str)
    return [given] if plain and type(made) is not type(given) and not widened else []


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return _make_adapter(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return None


@lru_cache(maxsize=512)
def _make_adapter(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None
