"""What a recipe would take: parameters, memory, steps. The fits are assembled as for training; none is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdengine.engine import layout
from kdengine.engine.engine import Engine
from kdengine.engine.feed import Feed
from kdengine.engine.loader import Loader
from kdengine.recipe.data import Data, make_data
from kdengine.recipe.plan import Plan
from kdengine.recipe.run import student_fit as train_student
from kdengine.recipe.teacher import Teacher, cached_at, check_cache, untrained_teacher
from kdengine.recipe.teacher import teacher_fit as train_teacher
from kdengine.recipe.teaching import ModelPlan

PROBE = 2
"""Items of the batch that is measured: one alone would be refused by batch normalisation."""


@dataclass(frozen=True)
class FitEstimate:
    """What one fit would take; sizes in bytes.

    Attributes:
        name: of the fit.
        parameters: of the model that trains.
        weights: parameters and buffers of every model that runs, and of losses (projectors, memory banks).
        gradients: of what trains, projectors of losses included.
        optimizer: its state after a step.
        activations: what backward keeps of one micro-batch.
        epochs: passes over the training set.
        steps: optimizer steps.
    """

    name: str
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    epochs: int
    steps: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Estimate:
    """What a recipe would take.

    Attributes:
        fits: in the order in which they would run.
        teacher_note: where the teacher would come from; None without one.
        train_items: size of the training set.
        labelled_items: how many of them the student sees labelled.
        test_items: size of the test set.
        input_shape: of one input.
        classes: how many.
        device: where it would run.
    """

    fits: list[FitEstimate]
    teacher_note: str | None
    train_items: int
    labelled_items: int
    test_items: int
    input_shape: tuple[int, ...]
    classes: int
    device: str


def estimate(plan: Plan) -> Estimate:
    """Build data and models, run one tiny batch forwards, and count.

    Raises:
        KDEngineError: what a run would be refused for.
    """
    check_cache(plan)
    data = make_data(plan)
    fits: list[FitEstimate] = []
    teacher = untrained_teacher(plan, data)
    note = find_teacher(plan, data, teacher, fits)
    engine, of_student = student_fit(plan, data, teacher)
    if plan.recipe.baseline:
        fits.append(student_fit(plan, data, teacher, alone=True)[1])
    fits.append(of_student)
    facts = data.describe(plan.recipe.data.use, plan.recipe.data.labelled, plan.recipe.train.seed)
    return Estimate(
        fits=fits,
        teacher_note=note,
        train_items=facts["train_items"],
        labelled_items=facts["labelled_items"],
        test_items=facts["test_items"],
        input_shape=data.input_shape,
        classes=len(data.classes),
        device=str(engine.runtime.device),
    )


def find_teacher(plan: Plan, data: Data, teacher: Teacher | None, fits: list[FitEstimate]) -> str | None:
    """Where the teacher's models would come from; the fits of those that would be trained first are added."""
    if plan.teacher is None:
        return None
    if teacher is None:
        return f"{plan.teacher.name}, would change with the student"
    notes = []
    for model, module in zip(plan.teacher.models, teacher.modules, strict=True):
        if model.table.train is None:
            notes.append(f"{model.name} from {model.table.checkpoint}")
        elif (cached_at(plan, data, model) / layout.SUMMARY).is_file():
            notes.append(f"{model.name}, trained before and kept in the cache")
        else:
            notes.append(f"{model.name}, would be trained first and kept in the cache")
            fits.append(teacher_fit(plan, data, model, module, model.table.train.epochs))
    return "; ".join(notes)


def teacher_fit(plan: Plan, data: Data, model: ModelPlan, module: nn.Module, epochs: int) -> FitEstimate:
    """The fit that trains a teacher."""
    engine, loader = train_teacher(plan, data, model, module, out=None, loggers=[])
    return measure(engine, loader.dataset, model.role, loader.order.batch_size, epochs, len(loader))


def student_fit(plan: Plan, data: Data, teacher: Teacher | None, *, alone: bool = False) -> tuple[Engine, FitEstimate]:
    """A fit of the student, alone or under the teacher."""
    recipe, seed = plan.recipe, plan.recipe.train.seed
    engine, loader = train_student(plan, data, teacher, seed=seed, out=None, loggers=[], alone=alone)
    steps = -(-len(loader) // recipe.train.accumulate)
    title = "student alone" if alone else "student" if engine.source is None else "student distilled"
    with plan.telling_lines():
        found = measure(engine, loader.dataset, title, recipe.data.batch_size, recipe.train.epochs, steps)
    return engine, found


def measure(engine: Engine, dataset: Any, name: str, batch_size: int, epochs: int, steps: int) -> FitEstimate:
    """Count what an assembled fit holds.

    Args:
        engine: of the fit.
        dataset: its training set.
        name: of the fit.
        batch_size: items of a micro-batch.
        epochs: passes over the training set.
        steps: optimizer steps per epoch.
    """
    probe = Loader(dataset, min(PROBE, len(dataset)), shuffle=False, seed=0)
    batch = next(iter(probe))
    kept = Kept(held(engine))
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        engine.objective(batch)
    fit = engine.assemble(Feed(probe, 1, engine._to_batch))
    for parameter in fit.parameters:
        parameter.grad = torch.zeros_like(parameter)
    fit.optimizer.step()
    return FitEstimate(
        name=name,
        parameters=sum(parameter.numel() for parameter in engine.student.parameters()),
        weights=sum(map(size, held(engine))),
        gradients=sum(size(parameter) for parameter in fit.parameters),
        optimizer=sum(
            size(value) for state in fit.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
        ),
        activations=kept.size * batch_size // min(PROBE, len(dataset)),
        epochs=epochs,
        steps=steps * epochs,
    )


def held(engine: Engine) -> list[Tensor]:
    """Parameters and buffers of the models that run, and of the losses that are set up."""
    modules = [engine.student, *([] if engine.source is None else engine.source.modules()), *engine.losses.values()]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


class Kept:
    """Counts the storages that backward keeps, each once, without those of the models."""

    def __init__(self, known: list[Tensor]) -> None:
        self.size = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._alive: list[Tensor] = []  # an address stays taken while its tensor lives

    def __call__(self, tensor: Tensor) -> Tensor:
        """Note a tensor that is saved."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._alive.append(tensor)
            self.size += storage.nbytes()
        return tensor


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()
