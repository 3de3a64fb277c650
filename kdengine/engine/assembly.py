"""Assembling a fit: models, objective, optimizer and schedules from what the user gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from kdengine.api import Batch, ConfigurationError, Loss, Output, TeacherSource
from kdengine.api.errors import LossError, in_loss
from kdengine.engine import random
from kdengine.engine.attribution import raised_by
from kdengine.engine.averaging import MovingAverage
from kdengine.engine.batching import place
from kdengine.engine.features import Capture
from kdengine.engine.fit import Models
from kdengine.engine.forward import run_pair, run_student, run_teacher
from kdengine.engine.guard import FrozenGuard, refuse_shared
from kdengine.engine.heads import Heads
from kdengine.engine.modes import evaluation_mode
from kdengine.engine.objective import Objective
from kdengine.engine.optimizers import Named
from kdengine.engine.output_checks import check_data
from kdengine.engine.precision import Precision
from kdengine.engine.runtime import Runtime
from kdengine.engine.settings import StrategyName
from kdengine.engine.strategies import Alone, Replicated, unused_parameters
from kdengine.engine.teacher import freeze
from kdengine.host import Dispatch, Host
from kdengine.host.dispatch import NOTHING, SKIPPABLE

Classes: TypeAlias = Literal["shared"] | Sequence[int] | None


def make_models(
    student: nn.Module,
    source: TeacherSource | None,
    losses: Mapping[str, Loss],
    *,
    runtime: Runtime,
    heads: Heads,
    classes: Classes,
    ema: float | None,
    own_inputs: Mapping[str, Callable[[Any], Any]],
) -> Models:
    """Place the models, freeze the teacher and prepare the capture of what losses ask for."""
    runtime.place(student)
    needs = [loss.needs for loss in losses.values()]
    teach = any(need.teacher for need in needs) or (source is not None and source.learns)
    if teach and source is None:
        labels = [label for label, loss in losses.items() if loss.needs.teacher]
        by_target = [label for label in labels if getattr(losses[label], "target", None) == "teacher"]
        hint = f"; {', '.join(by_target)} may compare with the labels instead: target='labels'" if by_target else ""
        raise ConfigurationError(f"the losses {labels} need a teacher, but teacher is None{hint}")
    _check_evolution(source, losses)
    student_features = _capture(student, losses, "student")
    heads.align = None if classes is None else Aligner(classes)
    guard, teacher, teacher_features = None, None, None
    if source is not None:
        source.find_logits = heads.find
        _refuse_heads(source, heads)
        source.prepare(student)
        if (given := _as_one(source.modules())) is not None:  # what cannot be captured is said before a module changes
            _capture_teacher(source, given, losses)
        _refuse_shared(source, student)
        source.place(runtime.device)
        _refuse_shared(source, student)
        modules = source.modules()
        teacher = _as_one(modules)
        if not source.evolving:
            for module in modules:
                freeze(module)
        guard = None if source.evolving or not modules else FrozenGuard(modules, source.ignore_buffers)
        teacher_features = _capture_teacher(source, teacher, losses)
    return Models(
        student=student,
        source=source,
        teacher=teacher,
        guard=guard,
        student_features=student_features,
        teacher_features=teacher_features,
        heads=heads,
        align=heads.align,
        average=None if ema is None else MovingAverage(student, ema),
        teach=teach,
        own_inputs=own_inputs,
    )


def _refuse_shared(source: TeacherSource, student: nn.Module) -> None:
    """Refuse a teacher that is part of the student: before it is frozen, and once its modules are made."""
    if not source.evolving or source.learns:
        refuse_shared(source.modules(), student)


def _refuse_heads(source: TeacherSource, heads: Heads) -> None:
    """Refuse heads of a teacher that gives logits themselves: what they would be read from is not there."""
    if heads.labels and source.gives_logits:
        raise ConfigurationError(
            f"Engine(output=...) has heads for {', '.join(heads.labels)}, but the teacher, a {type(source).__name__}, "
            "gives the logits of one head alone; use the live model as the teacher"
        )


def _capture(module: nn.Module, losses: Mapping[str, Loss], role: Literal["student", "teacher"]) -> Capture | None:
    asked = {label: getattr(loss.needs, f"{role}_features") for label, loss in losses.items()}
    return Capture(module, asked, role) if any(asked.values()) else None


def _as_one(modules: Sequence[nn.Module]) -> nn.Module | None:
    """The module by whose paths a teacher's features are named: of several, a list of them."""
    return nn.ModuleList(modules) if len(modules) > 1 else next(iter(modules), None)


def _capture_teacher(source: TeacherSource, teacher: nn.Module | None, losses: Mapping[str, Loss]) -> Capture | None:
    if teacher is not None and source.gives_features:
        return _capture(teacher, losses, "teacher")
    for label, loss in losses.items():
        if not (paths := loss.needs.teacher_features):
            continue
        raise LossError(
            f"the features {list(paths)} are asked of a {type(source).__name__}, a teacher without live modules, which "
            "gives no features (a cache keeps logits alone); use the live teacher: without 'source' in a recipe",
            label,
            "teacher",
        )
    return None


def _check_evolution(source: TeacherSource | None, losses: Mapping[str, Loss]) -> None:
    if source is None or source.evolving:
        return
    for label, loss in losses.items():
        if loss.needs.teacher_gradients or loss.needs.teacher_training:
            raise LossError(
                "it trains the teacher, but the teacher is frozen; give a TeacherSource with evolving = True", label
            )


class Aligner:
    """Makes the teacher's classes those of the student.

    Args:
        classes: ``"shared"`` uses the leading classes that both have; a sequence gives, for each student class,
            the teacher's.
    """

    def __init__(self, classes: Literal["shared"] | Sequence[int]) -> None:
        if isinstance(classes, str) and classes != "shared":
            raise ConfigurationError(f"classes must be 'shared' or a sequence of teacher classes, got {classes!r}")
        self.classes = classes
        self.index = None if isinstance(classes, str) else torch.as_tensor(list(classes))

    def __call__(self, batch: Batch) -> None:
        """Replace the teacher's output on the batch."""
        teacher = batch.teacher
        if teacher._logits is None or batch.student._logits is None:
            return  # heads alone, each of which is aligned for itself
        logits, student = teacher.logits, batch.student.logits.shape[-1]
        if self.index is None:
            logits = logits[..., :student]
        else:
            if len(self.index) != student or int(self.index.max()) >= logits.shape[-1]:
                raise ConfigurationError(
                    f"classes maps {len(self.index)} student classes to teacher classes up to "
                    f"{int(self.index.max())}; the student has {student} classes, the teacher {logits.shape[-1]}"
                )
            logits = logits.index_select(-1, self.index.to(logits.device))
        batch.teacher = Output(teacher.output, logits, teacher.features, teacher.module)


def set_up_losses(
    objective: Objective,
    models: Models,
    precision: Precision,
    runtime: Runtime,
    host: Host,
    example: Callable[[], Batch],
) -> None:
    """Run every loss's ``setup`` once, on real shapes; random state and batch statistics stay as found.

    Where features are asked for the models run even if no loss waits for shapes: it shows that they arrive.
    """
    waiting = {label: loss for label, loss in objective.losses.items() if type(loss).setup is not Loss.setup}
    if not (waiting or models.student_features or models.teacher_features):
        return
    given = example()
    for label, loss in waiting.items():
        check_data(label, loss, objective.heads.relabelled(label, given))
    batch = place(given, runtime.device)
    with attached(models), evaluation_mode(*models.moving), random.preserved(), torch.no_grad():
        run_pair(models, precision, batch)
    for label, loss in waiting.items():
        if isinstance(name := loss.projector, str):
            with in_loss(label, "projector"):
                loss.projector = host.component("projectors", name).load()
        with random.preserved(), raised_by(label, loss):
            loss.setup(objective.view(label, batch))
        loss.to(objective.device, objective.dtype)


def make_strategy(
    name: StrategyName,
    objective: Objective,
    models: Models,
    precision: Precision,
    runtime: Runtime,
    example: Callable[[], Batch],
) -> Alone:
    """Prepare the student for the processes of the runtime; one process needs nothing."""
    if not runtime.several:
        return Alone()
    for module in (objective.modules, *models.evolving):
        runtime.replicate(module)
    if name == "fsdp":
        from kdengine.engine import fsdp

        fsdp.shard(models.student)
        for module in (*models.evolving, *([] if models.average is None else [models.average.module])):
            fsdp.shard(module, frozen=module not in models.learning)
        return fsdp.Sharded([models.student, *models.learning], objective.modules)
    unused = runtime.any(_leaves_out(objective, models, precision, runtime, example))
    return Replicated(
        models.student,
        objective.modules,
        models.evolving,
        unused=unused,
        remembering=[objective.module_names[label] for label in objective.remembering],
    )


def _leaves_out(
    objective: Objective, models: Models, precision: Precision, runtime: Runtime, example: Callable[[], Batch]
) -> bool:
    """Whether nothing that the losses read depends on some parameter that trains: no loss itself is run."""
    batch = place(example(), runtime.device)
    with attached(models), evaluation_mode(*models.moving), random.preserved():
        outputs = [run_student(models, precision, batch)]
        if models.learning:
            outputs.append(run_teacher(models, precision, batch))
    wanted = [label for label, loss in objective.losses.items() if loss.needs.logits]
    read = [
        tensor
        for output in outputs
        for tensor in (*(objective.heads.output(each, output).logits for each in wanted), *output.features.values())
    ]
    if not read:
        return True
    parameters = [p for module in (models.student, *models.learning) for p in module.parameters()]
    return unused_parameters(torch.stack([tensor.sum().float() for tensor in read]).sum(), parameters)


class attached:  # noqa: N801 - a context manager
    """Feature hooks of both models, for as long as the context lasts."""

    def __init__(self, models: Models) -> None:
        self.captures = [c for c in (models.student_features, models.teacher_features) if c is not None]

    def __enter__(self) -> None:
        for capture in self.captures:
            capture.attach()

    def __exit__(self, *_: object) -> None:
        for capture in self.captures:
            capture.remove()


def trainable(student: nn.Module, objective: Objective, learning: Sequence[nn.Module] = ()) -> Named:
    """All parameters that train, by name; those of losses begin with ``losses.``, the teacher's with ``teacher.``.

    Args:
        student: the model that trains.
        objective: the losses.
        learning: the modules of a teacher that learns.

    Raises:
        ConfigurationError: the student has none, or the teacher that should learn.
    """
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    if not named:
        raise ConfigurationError(
            f"the student {type(student).__name__} has no trainable parameter; "
            "is requires_grad off, or was the teacher given as the student?"
        )
    inner = [(f"losses.{name}", p) for name, p in objective.named_parameters() if p.requires_grad]
    return named + inner + _of_teacher(learning)


def _of_teacher(learning: Sequence[nn.Module]) -> Named:
    """What trains of a teacher that learns; by their place where it has several modules."""
    prefixes = ["teacher."] if len(learning) == 1 else [f"teacher.{position}." for position in range(len(learning))]
    found = [
        (f"{prefix}{name}", parameter)
        for prefix, module in zip(prefixes, learning, strict=True)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    if learning and not found:
        raise ConfigurationError(
            "the teacher should learn beside the student, but has no trainable parameter; is requires_grad off?"
        )
    return found


def ask_together(calls: Dispatch, runtime: Runtime) -> None:
    """Let every process ask a controller that any of them has (one on the main process, say): skipping is shared."""
    own = [getattr(calls, hook) is not None for hook in SKIPPABLE]
    for hook, here, asked in zip(SKIPPABLE, own, runtime.processes.largest(own), strict=True):
        if asked and not here:
            setattr(calls, hook, lambda _: NOTHING)
