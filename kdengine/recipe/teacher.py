"""The teacher of a run: loaded, or trained once for all seeds and kept in a cache."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdengine import _files as files
from kdengine._cache import cache_folder, why_unwritable
from kdengine._locks import Busy, locked
from kdengine._version import __version__
from kdengine.api import CheckpointError, ConfigurationError
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


def get_teacher(
    plan: Plan, data: Data, loggers: list[LoggerLike], say: Callable[[str], None] = lambda _: None
) -> Teacher | None:
    """Load the recipe's teacher, take it from the cache, or train it into the cache; None for one that evolves.

    A second process that wants the same teacher waits for the first; training that was interrupted goes on. Weights in
    the cache that are damaged or missing are made again, from the last checkpoint where there is one.
    """
    if plan.teacher is None or plan.teacher.evolving:
        return None
    modules, seconds, cached = [], [], []
    for model in plan.teacher.models:
        modules.append(teaching_model(model, data.facts))
        if model.table.train is not None:
            took, had = _train(plan, data, model, modules[-1], model.table.train.epochs, loggers, say)
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
    plan: Plan,
    data: Data,
    model: ModelPlan,
    module: nn.Module,
    epochs: int,
    loggers: list[LoggerLike],
    say: Callable[[str], None],
) -> tuple[float | None, bool]:
    """Give a model the weights that its training comes to; how long that took, and whether the cache had them."""
    on_main = join().on_main
    folder = on_main(lambda: cached_at(plan, data, model))
    with ExitStack() as held:
        _wait_for(folder, held, say)
        summary = on_main(lambda: _intact_summary(folder, say))
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


def _wait_for(folder: Path, held: ExitStack, say: Callable[[str], None]) -> None:
    """Let the main process take the lock of a teacher in the cache, which the stack then holds.

    The others hear from it every `ROUND_SECONDS`: training a teacher takes longer than a process group waits.
    """
    told: str | None = None
    while (owner := join().on_main(lambda: _try_for(folder, held, ROUND_SECONDS))) is not None:
        if owner != told:
            say(f"waiting for {owner}, which trains the same teacher")
        told = owner


def _try_for(folder: Path, held: ExitStack, seconds: float) -> str | None:
    """Try to take a teacher's lock for a while; who has it instead."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    while True:
        try:
            return held.enter_context(locked(lock_of(folder)))
        except Busy as busy:
            if time.monotonic() >= deadline:
                return str(busy)
        time.sleep(POLL_SECONDS)


def lock_of(folder: Path) -> Path:
    """The lock of a teacher in the cache."""
    return folder.parent / f"{folder.name}.lock"


def _intact_summary(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The summary of a teacher in the cache whose weights are whole; one of weights that are not is removed."""
    for place in (folder.parent, folder, folder / layout.CHECKPOINTS):
        files.sweep(place)
    summary = rundir.read_summary(folder)
    if summary is None:
        return None
    try:
        rundir.read_student(folder)
    except (CheckpointError, OSError) as error:
        say(f"the teacher in the cache is made again: {error}")
        files.remove(folder / layout.SUMMARY)
        return None
    return summary


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


def check_cache(plan: Plan) -> None:
    """Refuse a run whose teacher is to be trained into a cache that cannot be written.

    Raises:
        ConfigurationError: it cannot; the message says how to name another one.
    """
    if plan.teacher is None or all(model.table.train is None for model in plan.teacher.models):
        return
    try:
        reason = why_unwritable(teachers_folder())
    except OSError as error:
        reason = str(error)
    if reason is not None:
        raise ConfigurationError(reason)


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
        "content": [data.content, *data.classes],
        "optimizer": recipe.optimizer.model_dump(mode="json", exclude_none=True),
        "lr_schedule": recipe.lr_schedule.model_dump(mode="json", exclude_none=True),
        "batch_transforms": [[k, v.model_dump(mode="json")] for k, v in recipe.batch_transforms.items()],
        "precision": recipe.train.precision,
        "evaluate": list(recipe.evaluate.metrics),
        "device": str(choose_device(recipe.train.device)),
        "threads": torch.get_num_threads(),
        "versions": [__version__, str(torch.__version__), *sorted(map(str, plan.host.versions().items()))],
    }
    if _waits_for_metric(plan, model):
        facts["evaluated on"] = data.test_content
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


ROUND_SECONDS = 30.0
"""How long the main process tries to take a teacher's lock before it tells the others that it still waits."""
POLL_SECONDS = 0.2

WHILE_TEACHING = {"source", "shard", "device", "dtype", "ignore_buffers", "members"}
"""Keys of a teacher's table that do not change its weights."""


def _waits_for_metric(plan: Plan, model: ModelPlan) -> bool:
    """Whether the test set has a say in the training: a learning rate that falls where a metric stands still."""
    own = None if model.table.train is None else model.table.train.lr_schedule
    return (own or plan.recipe.lr_schedule).use == "plateau"
