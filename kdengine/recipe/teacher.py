"""The teacher of a run: loaded, or trained once for all seeds and kept in a cache."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from kdengine._cache import cache_folder
from kdengine._version import __version__
from kdengine.api import CheckpointError
from kdengine.api.processes import join
from kdengine.engine import layout, rundir
from kdengine.engine.engine import Engine
from kdengine.engine.loader import Loader
from kdengine.engine.loggers import LoggerLike
from kdengine.engine.runtime import choose_device
from kdengine.recipe.build import teacher_engine
from kdengine.recipe.data import Data, test_loader, training_loader
from kdengine.recipe.models import load_weights, teaching_model
from kdengine.recipe.plan import Plan
from kdengine.recipe.teaching import ModelPlan


@dataclass(frozen=True)
class Teacher:
    """The models of a frozen teacher, with their weights.

    Attributes:
        modules: the models, in their order.
        seconds: how long their training took; None where none was trained.
        cached: whether the cache had all that are trained.
    """

    modules: list[nn.Module]
    seconds: float | None
    cached: bool


def get_teacher(plan: Plan, data: Data, loggers: list[LoggerLike]) -> Teacher | None:
    """Load the recipe's teacher, take it from the cache, or train it into the cache; None for one that evolves.

    A second process that wants the same teacher waits for the first; training that was interrupted goes on.
    """
    if plan.teacher is None or plan.teacher.evolving:
        return None
    modules, seconds, cached = [], [], []
    for model in plan.teacher.models:
        modules.append(teaching_model(model, data.facts))
        if model.table.train is not None:
            took, had = _train(plan, data, model, modules[-1], model.table.train.epochs, loggers)
            seconds.append(took)
            cached.append(had)
    known = [each for each in seconds if each is not None]
    return Teacher(modules, seconds=sum(known) if known else None, cached=bool(cached) and all(cached))


def untrained_teacher(plan: Plan, data: Data) -> Teacher | None:
    """The recipe's frozen teacher as it is before any training."""
    if plan.teacher is None or plan.teacher.evolving:
        return None
    return Teacher([teaching_model(model, data.facts) for model in plan.teacher.models], seconds=None, cached=False)


def _train(
    plan: Plan, data: Data, model: ModelPlan, module: nn.Module, epochs: int, loggers: list[LoggerLike]
) -> tuple[float | None, bool]:
    """Give a model the weights that its training comes to; how long that took, and whether the cache had them."""
    on_main = join().on_main
    folder = on_main(lambda: cached_at(plan, data, model))
    with ExitStack() as locked:
        summary = on_main(lambda: _locked_summary(folder, locked))
        if summary is None:
            engine, loader = teacher_fit(plan, data, model, module, out=folder, loggers=loggers)
            engine.fit(loader, test_loader(plan, data), epochs=epochs, resume="auto")
    load_weights(module, folder / layout.STUDENT, model.role)
    return on_main(lambda: _seconds(folder)), summary is not None


def _seconds(folder: Path) -> float:
    """How long the training of a cached teacher took."""
    student = rundir.finished_summary(folder).get("student")
    seconds = student.get("seconds") if isinstance(student, dict) else None
    if not isinstance(seconds, int | float):
        raise CheckpointError(f"{folder / layout.SUMMARY} is damaged: it does not say how long the training took")
    return seconds


def _locked_summary(folder: Path, locked: ExitStack) -> dict[str, Any] | None:
    """The summary of a teacher in the cache, read under a lock that the stack holds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    locked.enter_context(FileLock(folder.parent / f"{folder.name}.lock"))
    return rundir.read_summary(folder)


def teacher_fit(
    plan: Plan, data: Data, model: ModelPlan, module: nn.Module, *, out: Path | None, loggers: list[LoggerLike]
) -> tuple[Engine, Loader]:
    """The engine that trains a teacher, and the loader of its training set."""
    training = model.table.train
    assert training is not None, "a plan's teacher has a checkpoint or a train table"
    batch_size = training.batch_size or plan.recipe.data.batch_size
    dataset = data.training_set(training.labelled, training.seed)
    loader = training_loader(plan, dataset, batch_size=batch_size, seed=training.seed)
    engine = teacher_engine(plan, data, model, module, out=out, steps_per_epoch=len(loader), loggers=loggers)
    return engine, loader


def cached_at(plan: Plan, data: Data, model: ModelPlan) -> Path:
    """The folder of the cache in which a trained teacher is, or would be."""
    return teachers_folder() / f"{model.name.replace(':', '-')}-{key(plan, data, model)}"


def teachers_folder() -> Path:
    """Where trained teachers are kept."""
    return cache_folder() / "teachers"


def key(plan: Plan, data: Data, model: ModelPlan) -> str:
    """A hash of everything that determines a teacher: recipe keys, data, versions, device and threads."""
    recipe = plan.recipe
    facts: dict[str, Any] = {
        "teacher": model.table.model_dump(mode="json", exclude_none=True, exclude=WHILE_TEACHING),
        "data": recipe.data.model_dump(mode="json", exclude_none=True, exclude={"labelled", "workers"}),
        "content": [_fingerprint(data.train), *data.classes],
        "optimizer": recipe.optimizer.model_dump(mode="json", exclude_none=True),
        "lr_schedule": recipe.lr_schedule.model_dump(mode="json", exclude_none=True),
        "batch_transforms": [[k, v.model_dump(mode="json")] for k, v in recipe.batch_transforms.items()],
        "precision": recipe.train.precision,
        "evaluate": list(recipe.evaluate.metrics),
        "device": str(choose_device(recipe.train.device)),
        "threads": torch.get_num_threads(),
        "versions": [__version__, str(torch.__version__), *sorted(map(str, plan.host.versions().items()))],
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


WHILE_TEACHING = {"source", "shard", "device", "dtype", "members"}
"""Keys of a teacher's table that do not change its weights."""


def _fingerprint(dataset: Any) -> str:
    fingerprint = getattr(dataset, "fingerprint", None)
    return fingerprint() if callable(fingerprint) else f"{type(dataset).__name__} of {len(dataset)}"
