"""The plan: a recipe with every component found and every argument checked, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from kdengine.api import ConfigurationError, Loss
from kdengine.api.errors import LossError, nearest
from kdengine.engine.naming import check_names, taken
from kdengine.host import Host
from kdengine.recipe.binder import DETERMINISTIC, FROM_DATA, Binder, Bound, MakeSchedule, bind_optimizer
from kdengine.recipe.load import Source
from kdengine.recipe.problems import MISSING, Problem, RecipeError
from kdengine.recipe.rates import check_rate
from kdengine.recipe.schema import Recipe
from kdengine.recipe.teaching import TeacherPlan, plan_teacher

OF_LOSSES = ("items",)
"""Arguments that a loss gets from the data set unless the recipe gives them."""

STAND_IN = 2
"""Items of the data set as losses are told before it is read, only to see what they need."""

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
        teacher: the teacher, or None.
        student: the student model's factory.
        losses: by label.
        weights: by label.
        batch_transforms: by label.
        optimizer: of the student.
        metrics: by name as the recipe gives it.
        loggers: beside metrics.jsonl, by place and name: two of one name are two.
        source: the recipe's text, for messages.
    """

    recipe: Recipe
    host: Host
    data: Bound
    transforms: list[Bound]
    eval_transforms: list[Bound]
    teacher: TeacherPlan | None
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
    losses = {
        label: binder.table("losses", table, label, ("losses", label), supplied=OF_LOSSES)
        for label, table in recipe.losses.items()
    }
    weights = {label: _weight(binder, table.weight, label) for label, table in recipe.losses.items()}
    batch_transforms = {
        label: binder.table("transforms", table, label, ("batch_transforms", label), supplied=FROM_DATA)
        for label, table in recipe.batch_transforms.items()
    }
    optimizer = bind_optimizer(binder, recipe.optimizer, ("optimizer",))
    teacher = None if recipe.teacher is None else plan_teacher(binder, recipe.teacher, optimizer)
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
        student=_there(student),
        losses={label: _there(bound) for label, bound in losses.items()},
        weights={label: weight for label, weight in weights.items() if weight is not None},
        batch_transforms={label: _there(bound) for label, bound in batch_transforms.items()},
        optimizer=_there(optimizer),
        metrics={name: _there(bound) for name, bound in metrics.items()},
        loggers={f"{place}:{bound.component.qualified}": bound for place, bound in enumerate(loggers)},
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


def _weight(binder: Binder, weight: float | Mapping[str, Any], label: str) -> Weight | None:
    path = ("losses", label, "weight")
    if not isinstance(weight, Mapping):
        return weight
    schedule = binder.schedule(weight, path)
    if schedule is not None:
        binder.build(path, schedule)
    return schedule


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


def _name_problems(losses: Mapping[str, Loss], metrics: Sequence[str]) -> Iterator[Problem]:
    """Labels and metrics whose values would overwrite each other in the records."""
    reserved = {name: reason for name in metrics if (reason := taken(name)) is not None}
    for name, reason in reserved.items():
        yield Problem(("evaluate", "metrics"), f"the name of this metric {reason}", name)
    try:
        check_names(losses, {}, [name for name in metrics if name not in reserved])
    except LossError as error:
        yield Problem(error.place, error.reason)
    except ConfigurationError as error:
        yield Problem(("losses",), str(error))


def _check_teaching(
    binder: Binder, recipe: Recipe, losses: Mapping[str, Bound | None], metrics: Mapping[str, Bound | None]
) -> None:
    """Losses and metrics that need a teacher need one in the recipe; a baseline needs a loss that does not."""
    rehearsal = {label: partial(bound, items=STAND_IN) for label, bound in losses.items() if bound is not None}
    built = {label: binder.build(("losses", label), make) for label, make in rehearsal.items()}
    if binder.problems:
        return
    binder.problems.extend(_name_problems(built, recipe.evaluate.metrics))
    taught_losses = [label for label, loss in built.items() if loss.needs.teacher]
    taught_metrics = [name for name, metric in metrics.items() if metric is not None and metric.needs_teacher]
    if recipe.teacher is None:
        add = "needs a teacher: add a [teacher] table"
        binder.problems.extend(Problem(("losses", label), f"this loss {add}") for label in taught_losses)
        binder.problems.extend(Problem(("evaluate", "metrics"), f"{name} {add}", name) for name in taught_metrics)
    if recipe.baseline and len(taught_losses) == len(built):
        message = "the student alone needs a loss that uses no teacher, such as losses.ce = { weight = 0.1 }"
        binder.problems.append(Problem(("baseline",), message, value=True))
