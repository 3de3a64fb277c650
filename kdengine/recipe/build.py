"""From a plan to the arguments of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdengine.api import ConfigurationError, TeacherSource
from kdengine.engine.engine import Engine
from kdengine.engine.loggers import LoggerLike
from kdengine.engine.monitor import likely_mode
from kdengine.engine.optimizers import BROUGHT, Named
from kdengine.engine.runtime import choose_device
from kdengine.engine.settings import MonitorMode
from kdengine.engine.teacher import LiveTeacher
from kdengine.recipe.binder import Bound, MakeSchedule, group_options
from kdengine.recipe.data import Data
from kdengine.recipe.plan import Plan
from kdengine.recipe.rates import make_rate
from kdengine.recipe.schema import OptimizerTable
from kdengine.recipe.teaching import ModelPlan, TeacherPlan


def optimizer_factory(bound: Bound, table: OptimizerTable, **override: Any) -> Callable[[Named], torch.optim.Optimizer]:
    """A factory for the engine, with parameter groups by name pattern.

    Each parameter joins the first group whose ``match`` (shell pattern) fits its name; the rest form the last group.
    A pattern that fits nothing is an error, unless it means parameters that this fit does not have at all: those of
    losses or of a teacher that learns, which a student alone does without.
    """

    def factory(named: Named) -> torch.optim.Optimizer:
        groups = [group_options(group) for group in table.groups]
        members: list[list[nn.Parameter]] = [[] for _ in range(len(groups) + 1)]
        for name, parameter in named:
            matches = (at for at, group in enumerate(table.groups) if fnmatchcase(name, group["match"]))
            members[next(matches, len(groups))].append(parameter)
        for group, parameters in zip(table.groups, members, strict=False):
            if not parameters and not means_others(group["match"], named):
                raise ConfigurationError(f"optimizer.groups: no parameter's name matches {group['match']!r}")
        filled = [{**options, "params": held} for options, held in zip([*groups, {}], members, strict=True) if held]
        try:
            made = bound.factory(filled, **{**bound.values, **override})
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"[optimizer] {table.use} cannot be made: {error}") from error
        assert isinstance(made, torch.optim.Optimizer)
        return made

    return factory


def means_others(pattern: str, named: Named) -> bool:
    """Whether a pattern is for parameters of losses or of the teacher, in a fit that has none of them.

    >>> means_others("losses.hint.*", [("fc.weight", nn.Parameter(torch.ones(1)))])
    True
    """
    return any(
        pattern.startswith(prefix) and not any(name.startswith(prefix) for name, _ in named) for prefix in BROUGHT
    )


def make_engine(
    plan: Plan,
    data: Data,
    student: nn.Module,
    source: TeacherSource | None,
    *,
    name: str,
    seed: int,
    out: Path | None,
    steps_per_epoch: int,
    loggers: list[LoggerLike],
    alone: bool = False,
    trace_hooks: bool = False,
) -> Engine:
    """The engine of one fit of a run.

    Args:
        plan: the checked recipe.
        data: its data.
        student: the model that trains.
        source: the teacher's, or None.
        name: of the fit.
        seed: of the fit.
        out: its run directory.
        steps_per_epoch: optimizer steps per epoch.
        loggers: its loggers.
        alone: leave out every loss that needs the teacher, and give what is left a weight of one.
        trace_hooks: time the callbacks.
    """
    recipe, train = plan.recipe, plan.recipe.train
    metrics = plan.own_metrics if source is None else plan.metrics
    monitor = recipe.evaluate.monitor if recipe.evaluate.monitor in metrics else None
    mode = recipe.evaluate.monitor_mode if monitor is not None or recipe.evaluate.monitor is None else None
    losses = {label: bound(items=len(data.train)) for label, bound in plan.losses.items()}
    weights = {
        label: weight() if isinstance(weight, MakeSchedule) else weight for label, weight in plan.weights.items()
    }
    if alone:
        losses = {label: loss for label, loss in losses.items() if not loss.needs.teacher}
        weights = {}
    return Engine(
        student,
        source,
        losses=losses,
        weights=weights,
        optimizer=optimizer_factory(plan.optimizer, recipe.optimizer),
        lr_scheduler=make_rate(
            recipe.lr_schedule, steps_per_epoch, higher_is_better=(mode or _likely_mode(metrics, monitor)) == "max"
        ),
        metrics={name: bound() for name, bound in metrics.items()},
        loggers=loggers,
        batch_transforms=[bound(**data.facts) for bound in plan.batch_transforms.values()],
        plugins=plan.host,
        precision=train.precision,
        accumulate=train.accumulate,
        clip=train.clip,
        ema=train.ema,
        compile=train.compile,
        classes=train.classes,
        nonfinite=train.nonfinite,
        device=train.device,
        strategy=train.strategy,
        seed=seed,
        out=out,
        name=name,
        log_every=train.log_every,
        evaluate_every=recipe.evaluate.every,
        checkpoint_every=train.checkpoint_every,
        keep=train.keep,
        monitor=monitor,
        monitor_mode=mode,
        gradient_shares=True,
        trace_hooks=trace_hooks,
    )


def _likely_mode(metrics: Mapping[str, Bound], monitor: str | None = None) -> MonitorMode:
    """Which way the monitored metric is better; the first of them where none is named."""
    name = monitor or next(iter(metrics), None)
    return "max" if name is None else likely_mode(name, metrics[name].factory)


def make_source(teacher: TeacherPlan, data: Data, modules: Sequence[nn.Module]) -> TeacherSource:
    """The teacher that a fit has: what the recipe puts around its models.

    Args:
        teacher: its plan.
        data: of the run.
        modules: its models, in their order.
    """
    sources = [_around(model, data, module) for model, module in zip(teacher.models, modules, strict=True)]
    if teacher.source is None:
        return sources[0]
    source: TeacherSource = teacher.source(sources) if sources else teacher.source()
    return source


def _around(model: ModelPlan, data: Data, module: nn.Module) -> TeacherSource:
    """A model behind the source that its table names, or live."""
    table = model.table
    if model.source is None:
        device = None if table.device is None else choose_device(table.device)
        dtype = None if table.dtype is None else DTYPES[table.dtype]
        return LiveTeacher(module, device=device, dtype=dtype, shard=table.shard, ignore_buffers=table.ignore_buffers)
    source: TeacherSource = model.source(module, items=len(data.train))
    return source


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def teacher_engine(
    plan: Plan,
    data: Data,
    model: ModelPlan,
    module: nn.Module,
    *,
    out: Path | None,
    steps_per_epoch: int,
    loggers: list[LoggerLike],
) -> Engine:
    """The engine that trains a teacher on labels alone, as its ``train`` table says."""
    training = model.table.train
    assert training is not None, "only a teacher with a train table is trained"
    assert model.optimizer is not None, "what is trained has an optimizer"
    rate = make_rate(
        training.lr_schedule or plan.recipe.lr_schedule,
        steps_per_epoch,
        higher_is_better=_likely_mode(plan.own_metrics) == "max",
    )
    override = {} if training.lr is None else {"lr": training.lr}
    cross_entropy = plan.host.component("losses", "builtin:ce").load()
    return Engine(
        module,
        losses={"ce": cross_entropy(label_smoothing=training.label_smoothing)},
        optimizer=optimizer_factory(model.optimizer, training.optimizer or plan.recipe.optimizer, **override),
        lr_scheduler=rate,
        metrics={name: bound() for name, bound in plan.own_metrics.items()},
        batch_transforms=[bound(**data.facts) for bound in plan.batch_transforms.values()],
        loggers=loggers,
        precision=plan.recipe.train.precision,
        device=plan.recipe.train.device,
        strategy=plan.recipe.train.strategy,
        seed=training.seed,
        out=out,
        name="teacher",
        log_every=plan.recipe.train.log_every,
    )
