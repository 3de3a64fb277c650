"""The plan: a recipe with every component found and every argument checked, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kdengine.api import KDEngineError, Schedule
from kdengine.api.errors import LossError, nearest
from kdengine.host import Component, Host
from kdengine.recipe.load import Source
from kdengine.recipe.problems import MISSING, Problem, RecipeError
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

    @property
    def needs_teacher(self) -> bool:
        """Of a metric: whether it compares with the teacher."""
        return bool(getattr(self.factory, "needs_teacher", False))

    @property
    def higher_is_better(self) -> bool:
        """Of a metric: its direction of improvement."""
        return bool(getattr(self.factory, "higher_is_better", True))

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
        teacher_optimizer: of the teacher's training.
        student: the student model's factory.
        losses: by label.
        weights: by label.
        batch_transforms: by label.
        optimizer: of the student.
        metrics: by name as the recipe gives it.
        loggers: beside metrics.jsonl.
        source: the recipe's text, for messages.
    """

    recipe: Recipe
    host: Host
    data: Bound
    transforms: list[Bound]
    eval_transforms: list[Bound]
    teacher: Bound | None
    teacher_source: Bound | None
    teacher_optimizer: Bound
    student: Bound
    losses: dict[str, Bound]
    weights: dict[str, Weight]
    batch_transforms: dict[str, Bound]
    optimizer: Bound
    metrics: dict[str, Bound]
    loggers: dict[str, Bound]
    source: Source

    @property
    def own_metrics(self) -> dict[str, Bound]:
        """The metrics that need no teacher."""
        return {name: metric for name, metric in self.metrics.items() if not metric.needs_teacher}

    @contextmanager
    def telling_lines(self) -> Iterator[None]:
        """What cannot work with a loss is told as a problem of the recipe, with its line.

        Raises:
            RecipeError: in the place of a :class:`~kdengine.api.errors.LossError`.
        """
        try:
            yield
        except LossError as error:
            _, label, *argument = error.place
            table = self.recipe.losses.get(label)
            value = table.arguments.get(argument[0], MISSING) if table is not None and argument else MISSING
            problem = Problem(error.place, error.reason, value)
            raise RecipeError(self.source.title, [problem], self.source.text) from error


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
        skip: int = 0,
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
            skip: arguments that are given by position.
            supplied: arguments that need not be in the table.
            beside: other keys of the table, for suggestions.
        """
        try:
            component = self.host.component(kind, name)
            factory = component.load()
            known = arguments(factory, skip=skip)
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

    def build(self, path: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """Make an object once, if nothing is wrong with its table; what its constructor refuses is a problem too."""
        if not self.is_fine(path):
            return None
        try:
            return make()
        except (ValueError, TypeError) as error:
            self.problems.append(Problem(path, str(error)))
            return None


def _is_schedule(argument: Argument, value: Any) -> bool:
    return argument.is_scalar and isinstance(value, Mapping)


def make_plan(recipe: Recipe, host: Host, source: Source, problems: Iterable[Problem] = ()) -> Plan:
    """Check a recipe against its plugins.

    Args:
        recipe: the recipe.
        host: its plugins.
        source: of the recipe, for messages.
        problems: what :func:`~kdengine.recipe.load.read` found already.

    Raises:
        RecipeError: every problem at once.
    """
    binder = Binder(host, problems)
    data = binder.table("datasets", recipe.data, "", ("data",), skip=1)
    transforms = binder.listed("transforms", recipe.data.transforms, ("data", "transforms"))
    eval_transforms = _eval_transforms(binder, recipe, transforms)
    student = binder.table("models", recipe.student, "", ("student",), supplied=FROM_DATA)
    teacher, teacher_source, teacher_optimizer = _teacher(binder, recipe)
    losses = {label: binder.table("losses", table, label, ("losses", label)) for label, table in recipe.losses.items()}
    weights = {label: _weight(binder, table.weight, label) for label, table in recipe.losses.items()}
    batch_transforms = {
        label: binder.table("transforms", table, label, ("batch_transforms", label), supplied=FROM_DATA)
        for label, table in recipe.batch_transforms.items()
    }
    optimizer = bind_optimizer(binder, recipe.optimizer, ("optimizer",))
    binder.problems.extend(check_rate(recipe.lr_schedule, ("lr_schedule",)))
    metrics = dict(zip(recipe.evaluate.metrics, _metrics(binder, recipe), strict=True))
    loggers = binder.listed("loggers", recipe.loggers, ("loggers",))
    _check_teaching(binder, recipe, losses, metrics)
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
        teacher_optimizer=_there(teacher_optimizer or optimizer),
        student=_there(student),
        losses={label: _there(bound) for label, bound in losses.items()},
        weights={label: weight for label, weight in weights.items() if weight is not None},
        batch_transforms={label: _there(bound) for label, bound in batch_transforms.items()},
        optimizer=_there(optimizer),
        metrics={name: _there(bound) for name, bound in metrics.items()},
        loggers={bound.component.name: bound for bound in loggers},
        source=source,
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
    path = ("losses", label, "weight")
    if not isinstance(weight, Mapping):
        return weight
    schedule = binder.schedule(weight, path)
    if schedule is not None:
        binder.build(path, schedule)
    return schedule


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


def _metrics(binder: Binder, recipe: Recipe) -> list[Bound | None]:
    names = recipe.evaluate.metrics
    path = ("evaluate", "metrics")
    found = [binder.bind("metrics", name, {}, (*path, str(position))) for position, name in enumerate(names)]
    monitor = recipe.evaluate.monitor
    if monitor is not None and monitor not in names and binder.is_fine(path):
        binder.problems.append(
            Problem(("evaluate", "monitor"), f"not among evaluate.metrics; {nearest(monitor, names)}", monitor)
        )
    return found


def _teacher(binder: Binder, recipe: Recipe) -> tuple[Bound | None, Bound | None, Bound | None]:
    """The teacher model, its source, and the optimizer of its training where that is its own."""
    table = recipe.teacher
    if table is None:
        return None, None, None
    model = binder.table("models", table, "", ("teacher",), supplied=FROM_DATA)
    if table.checkpoint is None and table.train is None and binder.is_fine(("teacher",)):
        message = "a teacher needs checkpoint = 'file.safetensors', or train = { epochs = ... } to train it first"
        binder.problems.append(Problem(("teacher",), message))
    if table.checkpoint is not None and table.train is not None:
        message = "give a checkpoint or a train table, not both"
        binder.problems.append(Problem(("teacher", "checkpoint"), message, table.checkpoint))
    optimizer = None
    if table.train is not None and table.train.optimizer is not None:
        optimizer = bind_optimizer(binder, table.train.optimizer, ("teacher", "train", "optimizer"))
    if table.train is not None and table.train.lr_schedule is not None:
        binder.problems.extend(check_rate(table.train.lr_schedule, ("teacher", "train", "lr_schedule")))
    source = (
        None
        if table.source is None
        else binder.named("teachers", table.source, ("teacher", "source"), skip=1, supplied=("items",))
    )
    return model, source, optimizer


def _check_teaching(
    binder: Binder, recipe: Recipe, losses: Mapping[str, Bound | None], metrics: Mapping[str, Bound | None]
) -> None:
    """Losses and metrics that need a teacher need one in the recipe; a baseline needs a loss that does not."""
    built = {label: binder.build(("losses", label), bound) for label, bound in losses.items() if bound is not None}
    if binder.problems:
        return
    taught_losses = [label for label, loss in built.items() if loss.needs.teacher]
    taught_metrics = [name for name, metric in metrics.items() if metric is not None and metric.needs_teacher]
    if recipe.teacher is None:
        add = "needs a teacher: add a [teacher] table"
        binder.problems.extend(Problem(("losses", label), f"this loss {add}") for label in taught_losses)
        binder.problems.extend(Problem(("evaluate", "metrics"), f"{name} {add}", name) for name in taught_metrics)
    if recipe.baseline and len(taught_losses) == len(built):
        message = "the student alone needs a loss that uses no teacher, such as losses.ce = { weight = 0.1 }"
        binder.problems.append(Problem(("baseline",), message, value=True))
