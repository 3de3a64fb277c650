"""The teacher of a recipe, planned: one model, several, or what evolves with the student."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from kdengine.api.teacher import FrozenModel
from kdengine.recipe.binder import DETERMINISTIC, FROM_DATA, Binder, Bound, bind_optimizer
from kdengine.recipe.problems import Problem
from kdengine.recipe.rates import check_rate
from kdengine.recipe.schema import TeacherModelTable, TeacherTable

UNITES = "ensemble"
"""The source of several teachers unless the recipe names another."""
OF_A_MODEL = ("checkpoint", "train", "transforms", "shard", "device", "dtype", "ignore_buffers")
"""Keys of a table with a model; ``use`` and the source are told apart by what the source wraps."""
LIVE = ("shard", "device", "dtype", "ignore_buffers")
"""Keys that the live model alone heeds."""


@dataclass(frozen=True)
class ModelPlan:
    """A model that teaches.

    Attributes:
        table: its table.
        path: of the table.
        factory: makes the model.
        optimizer: of its training; None where nothing trains it beforehand.
        transforms: what its inputs go through.
        source: what stands around it; None for the live module.
    """

    table: TeacherModelTable
    path: tuple[str, ...]
    factory: Bound
    optimizer: Bound | None
    transforms: list[Bound]
    source: Bound | None

    @property
    def role(self) -> str:
        """Its place in the recipe, for messages."""
        return ".".join(self.path)

    @property
    def name(self) -> str:
        """The model as the recipe names it."""
        assert self.table.use is not None, "a model has a name"
        return self.table.use


@dataclass(frozen=True)
class TeacherPlan:
    """The teacher of a recipe.

    Attributes:
        models: one; several; none where the source makes do with the student.
        source: what unites several, or makes do with the student; None for one model, which has its own.
        evolving: whether the teacher changes with the student, so that every fit begins with a new one.
    """

    models: list[ModelPlan]
    source: Bound | None
    evolving: bool

    @property
    def trained(self) -> list[ModelPlan]:
        """The models that are trained beforehand."""
        return [model for model in self.models if model.table.train is not None]

    @property
    def name(self) -> str:
        """The teacher in words."""
        names = ", ".join(model.name for model in self.models)
        if self.source is None:
            return names
        return f"{self.source.component.name} of {names}" if names else self.source.component.name


def plan_teacher(binder: Binder, table: TeacherTable, optimizer: Bound | None) -> TeacherPlan | None:
    """Check the teacher of a recipe; None where something is wrong with it.

    Args:
        binder: looks up and collects problems.
        table: the teacher's.
        optimizer: the recipe's, for models that are trained without one of their own.
    """
    if table.members:
        return _several(binder, table, optimizer)
    source = _source(binder, table.source, ("teacher",), wraps=("model", "nothing"))
    if source is not None and source.wraps == "nothing":
        return _without_model(binder, table, source)
    model = _model(binder, table, ("teacher",), optimizer, source)
    if model is None:
        return None
    return TeacherPlan([model], None, evolving=source is not None and source.evolving)


def _several(binder: Binder, table: TeacherTable, optimizer: Bound | None) -> TeacherPlan | None:
    where = ("teacher",)
    _refuse(binder, table, ("use", *OF_A_MODEL), "belongs to each of teacher.members")
    for key, value in table.arguments.items():
        binder.problems.append(Problem((*where, key), "unknown key beside members; arguments belong to each", value))
    source = _source(binder, table.source or UNITES, where, wraps=("sources",))
    models = []
    folders: set[object] = set()
    for position, member in enumerate(table.members):
        path = (*where, "members", str(position))
        own = _source(binder, member.source, path, wraps=("model",))
        if own is not None and own.evolving:
            message = f"{own.component.name} evolves with the student, and cannot be one of several teachers"
            binder.problems.append(Problem((*path, "source"), message, member.source))
        models.append(_model(binder, member, path, optimizer, own))
        if own is not None and own.component.qualified == "builtin:cached":
            folder = own.values.get("folder")
            if folder in folders:
                message = f"the folder of another member's cache; give each its own, such as '{folder}-{position}'"
                binder.problems.append(Problem((*path, "source", "folder"), message, folder))
            folders.add(folder)
        if member in table.members[:position]:
            message = f"the same teacher as member {table.members.index(member)}: give it a train.seed of its own"
            binder.problems.append(Problem(path, message))
    if source is None:
        return None
    binder.build((*where, "source"), lambda: source([FrozenModel(nn.Identity()) for _ in table.members]))
    return TeacherPlan([model for model in models if model is not None], source, evolving=False)


def _without_model(binder: Binder, table: TeacherTable, source: Bound) -> TeacherPlan:
    name = source.component.name
    _refuse(binder, table, ("use", *OF_A_MODEL), f"the source {name} is made of the student: leave this out")
    for key, value in table.arguments.items():
        message = f"unknown key; arguments of {name} stand in teacher.source"
        binder.problems.append(Problem(("teacher", key), message, value))
    binder.build(("teacher", "source"), source)
    return TeacherPlan([], source, evolving=True)


def _source(
    binder: Binder, given: str | dict[str, object] | None, path: tuple[str, ...], *, wraps: Iterable[str]
) -> Bound | None:
    """A teacher source that is made of what the table has."""
    if given is None:
        return None
    bound = binder.source(given, (*path, "source"))
    if bound is not None and bound.wraps not in wraps:
        needs = {
            "model": "a teacher of one model: give use, and no members",
            "sources": "teacher.members, a list of tables, in place of one model",
            "nothing": "a teacher of its own, without a model beside it",
        }[bound.wraps]
        binder.problems.append(Problem((*path, "source"), f"{bound.component.name} needs {needs}", given))
        return None
    return bound


def _model(
    binder: Binder, table: TeacherModelTable, path: tuple[str, ...], optimizer: Bound | None, source: Bound | None
) -> ModelPlan | None:
    """One model with its weights, its inputs and its source."""
    if table.use is None:
        if binder.is_fine((*path, "source")):
            message = "a teacher needs use = 'model', or members = [...], or a source that makes do with the student"
            binder.problems.append(Problem(path, message))
        return None
    factory = binder.table("models", table, "", path, supplied=FROM_DATA)
    evolving = source is not None and source.evolving
    _check_weights(binder, table, path, evolving=evolving)
    own = optimizer
    if table.train is not None and table.train.optimizer is not None:
        own = bind_optimizer(binder, table.train.optimizer, (*path, "train", "optimizer"))
    if table.train is not None and table.train.lr_schedule is not None:
        binder.problems.extend(check_rate(table.train.lr_schedule, (*path, "train", "lr_schedule")))
    transforms = binder.listed("transforms", table.transforms, (*path, "transforms"))
    for position, bound in enumerate(transforms):
        here = (*path, "transforms", str(position))
        name = bound.component.name
        if bound.component.plugin == "builtin" and name not in DETERMINISTIC and binder.is_fine(here):
            message = f"{name} draws; what draws belongs to data.transforms, which both models share"
            binder.problems.append(Problem(here, message, name))
    if source is not None:
        _refuse(binder, table, LIVE, f"the source {source.component.name} does not heed this; leave it out", path)
    if factory is None:
        return None
    return ModelPlan(table, path, factory, None if table.train is None else own, transforms, source)


def _check_weights(binder: Binder, table: TeacherModelTable, path: tuple[str, ...], *, evolving: bool) -> None:
    """A frozen model comes from a checkpoint or is trained; one that learns with the student is not trained before."""
    if evolving:
        if table.train is not None:
            message = "this teacher learns with the student: leave train out; it may begin with a checkpoint"
            binder.problems.append(Problem((*path, "train"), message))
        return
    if table.checkpoint is None and table.train is None and binder.is_fine(path):
        message = "a teacher needs checkpoint = 'file.safetensors', or train = { epochs = ... } to train it first"
        binder.problems.append(Problem(path, message))
    if table.checkpoint is not None and table.train is not None:
        message = "give a checkpoint or a train table, not both"
        binder.problems.append(Problem((*path, "checkpoint"), message, table.checkpoint))


def _refuse(
    binder: Binder, table: TeacherModelTable, keys: Iterable[str], message: str, path: tuple[str, ...] = ("teacher",)
) -> None:
    """Keys that have no meaning here."""
    for key in keys:
        if getattr(table, key):
            binder.problems.append(Problem((*path, key), message, getattr(table, key)))
