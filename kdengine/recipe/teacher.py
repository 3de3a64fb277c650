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
from kdengine.recipe.models import load_weights, make_model
from kdengine.recipe.plan import Plan


@dataclass(frozen=True)
class Teacher:
    """A teacher with its weights.

    Attributes:
        module: the model.
        seconds: how long its training took; None when it was loaded from a checkpoint.
        cached: whether the cache had it.
    """

    module: nn.Module
    seconds: float | None
    cached: bool


def get_teacher(plan: Plan, data: Data, loggers: list[LoggerLike]) -> Teacher | None:
    """Load the recipe's teacher, take it from the cache, or train it into the cache.

    A second process that wants the same teacher waits for the first; training that was interrupted goes on.
    """
    table = plan.recipe.teacher
    if table is None:
        return None
    module = new_teacher(plan, data)
    if table.train is None:
        return Teacher(module, seconds=None, cached=False)
    on_main = join().on_main
    folder = on_main(lambda: cached_at(plan, data))
    with ExitStack() as locked:
        summary = on_main(lambda: _locked_summary(folder, locked))
        if summary is None:
            engine, loader = teacher_fit(plan, data, module, out=folder, loggers=loggers)
            engine.fit(loader, test_loader(plan, data), epochs=table.train.epochs, resume="auto")
    load_weights(module, folder / layout.STUDENT, "teacher")
    return Teacher(module, seconds=on_main(lambda: _seconds(folder)), cached=summary is not None)


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


def new_teacher(plan: Plan, data: Data) -> nn.Module:
    """The recipe's teacher as it is before any training: from its checkpoint, where it has one."""
    table = plan.recipe.teacher
    assert table is not None
    assert plan.teacher is not None, "a recipe with a teacher has a plan with one"
    seed = 0 if table.train is None else table.train.seed
    module = make_model(plan.teacher, data.facts, seed=seed, role="teacher")
    if table.checkpoint is not None:
        load_weights(module, table.checkpoint, "teacher")
    return module


def teacher_fit(
    plan: Plan, data: Data, module: nn.Module, *, out: Path | None, loggers: list[LoggerLike]
) -> tuple[Engine, Loader]:
    """The engine that trains the teacher, and the loader of its training set."""
    table = plan.recipe.teacher
    assert table is not None
    assert table.train is not None, "a plan's teacher has a checkpoint or a train table"
    batch_size = table.train.batch_size or plan.recipe.data.batch_size
    dataset = data.training_set(table.train.labelled, table.train.seed)
    loader = training_loader(plan, dataset, batch_size=batch_size, seed=table.train.seed)
    engine = teacher_engine(plan, data, module, out=out, steps_per_epoch=len(loader), loggers=loggers)
    return engine, loader


def cached_at(plan: Plan, data: Data) -> Path:
    """The folder of the cache in which the recipe's trained teacher is, or would be."""
    assert plan.recipe.teacher is not None
    return teachers_folder() / f"{plan.recipe.teacher.use.replace(':', '-')}-{key(plan, data)}"


def teachers_folder() -> Path:
    """Where trained teachers are kept."""
    return cache_folder() / "teachers"


def key(plan: Plan, data: Data) -> str:
    """A hash of everything that determines the teacher: recipe keys, data, versions, device and threads."""
    recipe = plan.recipe
    assert recipe.teacher is not None
    facts: dict[str, Any] = {
        "teacher": recipe.teacher.model_dump(mode="json", exclude_none=True, exclude={"source", "shard"}),
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


def _fingerprint(dataset: Any) -> str:
    fingerprint = getattr(dataset, "fingerprint", None)
    return fingerprint() if callable(fingerprint) else f"{type(dataset).__name__} of {len(dataset)}"
