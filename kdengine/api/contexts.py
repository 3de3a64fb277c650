"""What callback hooks receive: slotted objects, read-only by convention."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kdengine.api.batch import Batch, Output


class Decision(enum.Enum):
    """What a controller hook may decide."""

    SKIP = "skip"
    """Leave out this optimizer step's update (``step_start``, ``optimizer_step``)."""
    SAVE = "save"
    """Write a checkpoint as soon as the step is complete."""
    STOP = "stop"
    """End the fit after the current step."""


class FitContext:
    """The whole fit.

    Attributes:
        name: name of the fit (``student``, ``student alone``, ``teacher``).
        student: the model that trains.
        teacher: the teacher's live modules (empty for a cache or without a teacher).
        losses: the loss modules by label.
        optimizer: the optimizer.
        device: where training runs.
        steps: optimizer steps of the whole fit.
        epochs: epochs of the whole fit.
        out: run directory, or None.
        step: optimizer steps done so far.
        epoch: current epoch, from 0.
        metrics: latest evaluation; empty before the first.
        rank: this process among those that train together; 0 is the one that writes.
        world: number of processes.
    """

    __slots__ = (
        "device", "epoch", "epochs", "losses", "metrics", "name", "optimizer", "out", "rank", "step", "steps",
        "student", "teacher", "world",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        student: nn.Module,
        teacher: Sequence[nn.Module],
        losses: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        steps: int,
        epochs: int,
        out: Path | None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.name = name
        self.student = student
        self.teacher = teacher
        self.losses = losses
        self.optimizer = optimizer
        self.device = device
        self.steps = steps
        self.epochs = epochs
        self.out = out
        self.rank = rank
        self.world = world
        self.step = 0
        self.epoch = 0
        self.metrics: Mapping[str, float | None] = {}


class StepContext:
    """One optimizer step; the same object serves every hook and step of a fit, so copy what you keep.

    Attributes:
        fit: the whole fit.
        step: optimizer step, from 0.
        epoch: epoch, from 0.
        micro: micro-batch within the step, from 0.
        batch: the micro-batch (``batch``: before the models run; later: with outputs).
        output: the teacher's output (``teacher_output``).
        terms: each term's weighted share of the loss, detached, on the device (``loss_terms``).
        gradient_norm: norm before clipping, on the device, or None when it is not computed.
    """

    __slots__ = ("batch", "epoch", "fit", "gradient_norm", "micro", "output", "step", "terms")

    def __init__(self, fit: FitContext) -> None:
        self.fit = fit
        self.step = 0
        self.epoch = 0
        self.micro = 0
        self.batch: Batch | None = None
        self.output: Output | None = None
        self.terms: Mapping[str, Tensor] = {}
        self.gradient_norm: Tensor | None = None


class EvaluateContext:
    """One evaluation: ``metrics`` is empty at its start and filled at its end."""

    __slots__ = ("epoch", "fit", "metrics", "step")

    def __init__(self, fit: FitContext, step: int, epoch: int, metrics: Mapping[str, float | None]) -> None:
        self.fit = fit
        self.step = step
        self.epoch = epoch
        self.metrics = metrics


class CheckpointContext:
    """A checkpoint that has just been written to ``path``."""

    __slots__ = ("fit", "path", "step")

    def __init__(self, fit: FitContext, path: Path, step: int) -> None:
        self.fit = fit
        self.path = path
        self.step = step


class ExceptionContext:
    """An exception that is about to end the fit."""

    __slots__ = ("exception", "fit", "step")

    def __init__(self, fit: FitContext, exception: BaseException, step: int) -> None:
        self.fit = fit
        self.exception = exception
        self.step = step


Context = FitContext | StepContext | EvaluateContext | CheckpointContext | ExceptionContext
