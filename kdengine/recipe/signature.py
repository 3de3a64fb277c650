"""Components' arguments against their signatures: unknown, missing and mistyped ones, before anything runs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
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
        return inspect.formatannotation(self.annotation).replace("typing.", "").replace("pathlib.", "")


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
    supplied: typing.Container[str] = (),
) -> tuple[dict[str, Any], list[Problem]]:
    """Validate a table's own keys against a component's arguments.

    Args:
        known: the component's arguments.
        given: the table's keys.
        path: of the table in the recipe.
        supplied: arguments that the caller fills in where the table does not.

    Returns:
        the validated arguments, and every problem.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            problems.append(Problem((*path, name), f"unknown argument; {nearest(name, known)}"))
            continue
        try:
            values[name] = check_value(known[name].annotation, value)
        except ValidationError as error:
            said = "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
            problems.append(Problem((*path, name), f"expected {known[name].type_name}: {said}", value))
    for name, argument in known.items():
        if argument.required and name not in given and name not in supplied:
            problems.append(Problem((*path, name), f"this argument is required ({argument.type_name})"))
    return values, problems


def check_value(annotation: Any, value: Any) -> Any:
    """A TOML value as the annotated type; strings and booleans are never taken for numbers.

    Raises:
        ValidationError: it is not of that type.
    """
    adapter = _adapter(annotation)
    if adapter is None:
        return value
    strict = isinstance(value, bool) or (
        isinstance(value, str) and Path not in (annotation, *typing.get_args(annotation))
    )
    return adapter.validate_python(value, strict=strict)


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
