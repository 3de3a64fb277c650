"""Components of a recipe, found and with checked arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdengine.api import KDEngineError, Schedule
from kdengine.host import Component, Host
from kdengine.recipe.problems import Problem
from kdengine.recipe.schema import ComponentTable, OptimizerTable
from kdengine.recipe.signature import Argument, arguments, check_arguments

FROM_DATA = ("classes", "input_shape")
"""Arguments that a model or a batch transform gets from the data set unless the recipe gives them."""

DETERMINISTIC = ("to_tensor", "normalize", "resize", "center_crop", "to_rgb", "to_grayscale")
"""Transforms that draw nothing: what a test input goes through unless the recipe says otherwise."""


@dataclass(frozen=True)
class Bound:
    """A component with checked arguments; calling it makes a new object.

    Attributes:
        component: where it comes from.
        factory: what is called.
        values: checked arguments.
        known: its signature.
    """

    component: Component
    factory: Callable[..., Any]
    values: Mapping[str, Any]
    known: Mapping[str, Argument]

    @property
    def needs_teacher(self) -> bool:
        """Of a metric: whether it compares with the teacher."""
        return bool(getattr(self.factory, "needs_teacher", False))

    @property
    def wraps(self) -> str:
        """Of a teacher source: what it is made of, see :class:`kdengine.TeacherSource`."""
        return str(getattr(self.factory, "wraps", "model"))

    @property
    def evolving(self) -> bool:
        """Of a teacher source: whether it changes with the student."""
        return bool(getattr(self.factory, "evolving", False))

    def __call__(self, *args: Any, **supplied: Any) -> Any:
        """Make the object; ``supplied`` fills in what the signature has and the recipe does not give."""
        extra = {name: value for name, value in supplied.items() if name in self.known and name not in self.values}
        values = {name: value() if isinstance(value, MakeSchedule) else value for name, value in self.values.items()}
        return self.factory(*args, **{**extra, **values})


@dataclass(frozen=True)
class MakeSchedule:
    """A scheduled scalar of the recipe; calling it makes a new schedule."""

    bound: Bound

    def __call__(self) -> Schedule:
        """A fresh schedule, without memory of another fit."""
        made: Schedule = self.bound()
        return made


class Binder:
    """Looks components up and checks their arguments, collecting problems instead of stopping at the first."""

    def __init__(self, host: Host, problems: Iterable[Problem] = ()) -> None:
        self.host = host
        self.problems = list(problems)

    def is_fine(self, path: tuple[str, ...]) -> bool:
        """Whether no problem is known at a path or below it."""
        return not any(problem.path[: len(path)] == path for problem in self.problems)

    def bind(
        self,
        kind: str,
        name: str,
        given: Mapping[str, Any],
        path: tuple[str, ...],
        *,
        named_at: tuple[str, ...] | None = None,
        skip: int | Callable[[Any], int] = 0,
        supplied: Iterable[str] = (),
        beside: Iterable[str] = (),
    ) -> Bound | None:
        """One component; None when it cannot be found, with the reason among the problems.

        Args:
            kind: of component.
            name: plain or qualified.
            given: its arguments.
            path: of its table.
            named_at: where the recipe names it; the table itself when absent.
            skip: arguments that are given by position; or says how many, of what the component loads.
            supplied: arguments that need not be in the table.
            beside: other keys of the table, for suggestions.
        """
        try:
            component = self.host.component(kind, name)
            factory = component.load()
            known = arguments(factory, skip=skip(factory) if callable(skip) else skip)
        except (KDEngineError, ValueError) as error:
            self.problems.append(Problem(named_at or path, str(error), name))
            return None
        scheduled = {key: value for key, value in given.items() if key in known and _is_schedule(known[key], value)}
        plain = {key: value for key, value in given.items() if key not in scheduled}
        values, problems = check_arguments(known, plain, path, supplied=(*supplied, *scheduled), beside=beside)
        self.problems.extend(problems)
        for key, table in scheduled.items():
            values[key] = self.schedule(table, (*path, key))
        return Bound(component, factory, values, known)

    def schedule(self, table: Mapping[str, Any], path: tuple[str, ...]) -> MakeSchedule | None:
        """A table ``{ schedule = name, ... }``."""
        given = dict(table)
        name = given.pop("schedule", None)
        if not isinstance(name, str):
            message = "expected a number, or a table such as { schedule = 'cosine', start = 4, end = 1 }"
            self.problems.append(Problem(path, message, dict(table)))
            return None
        bound = self.bind("schedules", name, given, path, named_at=(*path, "schedule"))
        return None if bound is None else MakeSchedule(bound)

    def table(
        self, kind: str, table: ComponentTable, label: str, path: tuple[str, ...], **options: Any
    ) -> Bound | None:
        """A component table whose label names the component unless ``use`` does."""
        named_at = path if table.use is None else (*path, "use")
        return self.bind(
            kind,
            table.use or label,
            table.arguments,
            path,
            named_at=named_at,
            beside=type(table).model_fields,
            **options,
        )

    def listed(self, kind: str, items: Iterable[str | Mapping[str, Any]], path: tuple[str, ...]) -> list[Bound]:
        """A list of names or tables with ``use``."""
        found = [self.named(kind, item, (*path, str(position))) for position, item in enumerate(items)]
        return [bound for bound in found if bound is not None]

    def named(self, kind: str, item: str | Mapping[str, Any], path: tuple[str, ...], **options: Any) -> Bound | None:
        """A name, or a table with ``use``."""
        given = {} if isinstance(item, str) else dict(item)
        name = item if isinstance(item, str) else given.pop("use", None)
        if not isinstance(name, str):
            self.problems.append(Problem(path, "expected a name, or a table with use = 'name'", item))
            return None
        named_at = path if isinstance(item, str) else (*path, "use")
        return self.bind(kind, name, given, path, named_at=named_at, beside=["use"], **options)

    def source(self, item: str | Mapping[str, Any], path: tuple[str, ...]) -> Bound | None:
        """A teacher source: a name, or a table with ``use``."""
        return self.named("teachers", item, path, skip=taken_by_position, supplied=("items",))

    def build(self, path: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """Make an object once, if nothing is wrong with its table; what its constructor refuses is a problem too."""
        if not self.is_fine(path):
            return None
        try:
            return make()
        except (ValueError, TypeError) as error:
            self.problems.append(Problem(path, str(error)))
            return None


def taken_by_position(source: Any) -> int:
    """How many arguments a recipe gives a teacher source by position: what it wraps, if anything."""
    return 0 if getattr(source, "wraps", "model") == "nothing" else 1


def _is_schedule(argument: Argument, value: Any) -> bool:
    return argument.is_scalar and isinstance(value, Mapping)


def bind_optimizer(binder: Binder, table: OptimizerTable, path: tuple[str, ...]) -> Bound | None:
    """An optimizer and the options of its parameter groups."""
    bound = binder.table("optimizers", table, "", path, skip=1)
    if bound is None:
        return None
    for position, group in enumerate(table.groups):
        here = (*path, "groups", str(position))
        options = group_options(group)
        if not isinstance(group.get("match"), str):
            binder.problems.append(Problem(here, "expected match = 'pattern of parameter names'", group))
        binder.problems.extend(check_arguments(bound.known, options, here, supplied=bound.known, beside=["match"])[1])
    return bound


def group_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a parameter group of the recipe says beside its pattern."""
    return {key: value for key, value in group.items() if key != "match"}
