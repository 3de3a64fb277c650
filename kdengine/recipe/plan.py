"""The plan: a recipe with every component found and every argument checked, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdengine.api import ConfigurationError, KDEngineError, Schedule
from kdengine.host import Component, Host
from kdengine.recipe.load import Source
from kdengine.recipe.problems import Problem, RecipeError
from kdengine.recipe.rates import check_rate
from kdengine.recipe.schema import ComponentTable, OptimizerTable, Recipe
from kdengine.recipe.signature import Argument, arguments, check_arguments

FROM_DATA = ("classes", "input_shape")
"""Arguments that a model or a batch transform gets from the data set unless the recipe gives them."""


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


Weight = float | MakeSchedule


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked.

    Attributes:
        recipe: the recipe.
        host: its plugins.
        data: the data set's factory.
        transforms: of training inputs.
        eval_transforms: of test inputs.
        teacher: the teacher model's factory, or None.
        teacher_source: what wraps it, or None for the live module.
        student: the student model's factory.
        losses: by label.
        weights: by label.
        batch_transforms: by label.
        optimizer: of the student.
        metrics: by name as the recipe gives it.
        loggers: beside metrics.jsonl.
    """

    recipe: Recipe
    host: Host
    data: Bound
    transforms: list[Bound]
    eval_transforms: list[Bound]
    teacher: Bound | None
    teacher_source: Bound | None
    student: Bound
    losses: dict[str, Bound]
    weights: dict[str, Weight]
    batch_transforms: dict[str, Bound]
    optimizer: Bound
    metrics: dict[str, Bound]
    loggers: dict[str, Bound]


class Binder:
    """Looks components up and checks their arguments, collecting problems instead of stopping at the first."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.problems: list[Problem] = []

    def bind(
        self,
        kind: str,
        name: str,
        given: Mapping[str, Any],
        path: tuple[str, ...],
        *,
        skip: int = 0,
        supplied: Iterable[str] = (),
    ) -> Bound | None:
        """One component; None when it cannot be used, with the reason among the problems."""
        try:
            component = self.host.component(kind, name)
            factory = component.load()
            known = arguments(factory, skip=skip)
        except (KDEngineError, ValueError) as error:
            self.problems.append(Problem((*path, "use"), str(error), name))
            return None
        scheduled = {key: value for key, value in given.items() if key in known and _is_schedule(known[key], value)}
        plain = {key: value for key, value in given.items() if key not in scheduled}
        values, problems = check_arguments(known, plain, path, supplied=(*supplied, *scheduled))
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
        bound = self.bind("schedules", name, given, path)
        return None if bound is None else MakeSchedule(bound)

    def table(
        self, kind: str, table: ComponentTable, label: str, path: tuple[str, ...], **options: Any
    ) -> Bound | None:
        """A component table whose label names the component unless ``use`` does."""
        return self.bind(kind, table.use or label, table.arguments, path, **options)

    def listed(self, kind: str, items: Iterable[str | Mapping[str, Any]], path: tuple[str, ...]) -> list[Bound]:
        """A list of names or tables with ``use``."""
        found = []
        for position, item in enumerate(items):
            given = {} if isinstance(item, str) else dict(item)
            name = item if isinstance(item, str) else given.pop("use", None)
            here = (*path, str(position))
            if not isinstance(name, str):
                self.problems.append(Problem(here, "expected a name, or a table with use = 'name'", item))
            elif (bound := self.bind(kind, name, given, here)) is not None:
                found.append(bound)
        return found


def _is_schedule(argument: Argument, value: Any) -> bool:
    return argument.is_scalar and isinstance(value, Mapping)


def make_plan(recipe: Recipe, host: Host, source: Source) -> Plan:
    """Check a recipe against its plugins.

    Raises:
        RecipeError: every problem at once.
    """
    binder = Binder(host)
    data = binder.table("datasets", recipe.data, "", ("data",), skip=1)
    transforms = binder.listed("transforms", recipe.data.transforms, ("data", "transforms"))
    eval_transforms = _eval_transforms(binder, recipe, transforms)
    student = binder.table("models", recipe.student, "", ("student",), supplied=FROM_DATA)
    teacher, teacher_source = _teacher(binder, recipe)
    losses = {label: binder.table("losses", table, label, ("losses", label)) for label, table in recipe.losses.items()}
    weights = {label: _weight(binder, table.weight, label) for label, table in recipe.losses.items()}
    batch_transforms = {
        label: binder.table("transforms", table, label, ("batch_transforms", label), supplied=FROM_DATA)
        for label, table in recipe.batch_transforms.items()
    }
    optimizer = bind_optimizer(binder, recipe.optimizer, ("optimizer",))
    binder.problems.extend(check_rate(recipe.lr_schedule, ("lr_schedule",)))
    metrics = {name: binder.bind("metrics", name, {}, ("evaluate", "metrics")) for name in recipe.evaluate.metrics}
    loggers = binder.listed("loggers", recipe.loggers, ("loggers",))
    _check_teaching(binder, recipe, losses)
    if binder.problems:
        raise RecipeError(source.title, binder.problems, source.text)
    return Plan(
        recipe=recipe,
        host=host,
        data=_there(data),
        transforms=transforms,
        eval_transforms=eval_transforms,
        teacher=teacher,
        teacher_source=teacher_source,
        student=_there(student),
        losses={label: _there(bound) for label, bound in losses.items()},
        weights={label: weight for label, weight in weights.items() if weight is not None},
        batch_transforms={label: _there(bound) for label, bound in batch_transforms.items()},
        optimizer=_there(optimizer),
        metrics={name: _there(bound) for name, bound in metrics.items()},
        loggers={bound.component.name: bound for bound in loggers},
    )


def _there(bound: Bound | None) -> Bound:
    assert bound is not None, "a component that is missing is a problem, and problems have been raised"
    return bound


def _eval_transforms(binder: Binder, recipe: Recipe, transforms: list[Bound]) -> list[Bound]:
    given = recipe.data.eval_transforms
    if given is not None:
        return binder.listed("transforms", given, ("data", "eval_transforms"))
    return [bound for bound in transforms if bound.component.name in DETERMINISTIC]


DETERMINISTIC = ("to_tensor", "normalize", "resize", "center_crop", "to_rgb", "to_grayscale")
"""Transforms that draw nothing: what a test input goes through unless the recipe says otherwise."""


def _weight(binder: Binder, weight: float | Mapping[str, Any], label: str) -> Weight | None:
    if isinstance(weight, Mapping):
        return binder.schedule(weight, ("losses", label, "weight"))
    return weight


def bind_optimizer(binder: Binder, table: OptimizerTable, path: tuple[str, ...]) -> Bound | None:
    """An optimizer and the options of its parameter groups."""
    bound = binder.table("optimizers", table, "", path, skip=1)
    if bound is None:
        return None
    for position, group in enumerate(table.groups):
        here = (*path, "groups", str(position))
        options = {key: value for key, value in group.items() if key != "match"}
        if not isinstance(group.get("match"), str):
            binder.problems.append(Problem(here, "expected match = 'pattern of parameter names'", group))
        binder.problems.extend(check_arguments({**bound.known}, options, here, supplied=bound.known)[1])
    return bound


def _teacher(binder: Binder, recipe: Recipe) -> tuple[Bound | None, Bound | None]:
    table = recipe.teacher
    if table is None:
        return None, None
    model = binder.table("models", table, "", ("teacher",), supplied=FROM_DATA)
    if table.checkpoint is None and table.train is None:
        message = "a teacher needs checkpoint = 'file.safetensors', or train = { epochs = ... } to train it first"
        binder.problems.append(Problem(("teacher",), message))
    if table.checkpoint is not None and table.train is not None:
        message = "give a checkpoint or a train table, not both"
        binder.problems.append(Problem(("teacher", "checkpoint"), message, table.checkpoint))
    if table.train is not None and table.train.optimizer is not None:
        bind_optimizer(binder, table.train.optimizer, ("teacher", "train", "optimizer"))
    if table.train is not None and table.train.lr_schedule is not None:
        binder.problems.extend(check_rate(table.train.lr_schedule, ("teacher", "train", "lr_schedule")))
    if table.source is None:
        return model, None
    name, given = (table.source, {}) if isinstance(table.source, str) else (table.source.get("use"), table.source)
    own = {key: value for key, value in given.items() if key != "use"}
    return model, binder.bind("teachers", str(name), own, ("teacher", "source"), skip=1)


def _check_teaching(binder: Binder, recipe: Recipe, losses: Mapping[str, Bound | None]) -> None:
    """Losses that need a teacher need one in the recipe; a baseline needs a loss that does not."""
    built = {label: _try(binder, label, bound) for label, bound in losses.items() if bound is not None}
    if binder.problems:
        return
    if recipe.teacher is None:
        for label, loss in built.items():
            if loss is not None and loss.needs.teacher:
                binder.problems.append(Problem(("losses", label), "this loss needs a teacher: add a [teacher] table"))
    if recipe.baseline and not any(loss is not None and not loss.needs.teacher for loss in built.values()):
        message = "the student alone needs a loss that uses no teacher, such as losses.ce = { weight = 0.1 }"
        binder.problems.append(Problem(("baseline",), message, value=True))


def _try(binder: Binder, label: str, bound: Bound) -> Any:
    """The loss itself; what its constructor refuses is a problem of its table."""
    try:
        return bound()
    except (ValueError, TypeError, ConfigurationError) as error:
        binder.problems.append(Problem(("losses", label), str(error)))
        return None
