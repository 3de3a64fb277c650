"""Everything that one fit works on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdengine import _interrupts as interrupts
from kdengine._interrupts import Interrupted as Interrupted
from kdengine.api import Batch, BatchTransform, Decision, FitContext, Metric, Progress, StepContext, TeacherSource
from kdengine.engine.averaging import MovingAverage
from kdengine.engine.buffers import BufferSnapshot, HiddenBuffers
from kdengine.engine.features import Capture
from kdengine.engine.feed import Feed
from kdengine.engine.guard import FrozenGuard
from kdengine.engine.heads import Heads
from kdengine.engine.ledger import Flag, Ledger, Means
from kdengine.engine.loggers import Loggers
from kdengine.engine.monitor import Monitor
from kdengine.engine.notices import Notices
from kdengine.engine.objective import Objective
from kdengine.engine.precision import Precision
from kdengine.engine.runtime import Runtime
from kdengine.engine.settings import Settings
from kdengine.engine.strategies import Alone
from kdengine.host import Dispatch


@dataclass(slots=True)
class Position:
    """Where training stands: epochs complete, micro-batches consumed in this one, optimizer steps done."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass(slots=True)
class Unread:
    """What is kept of a step until its losses can be read.

    Attributes:
        window: its micro-batches, by which a value that is not finite is traced.
        lr: its learning rate.
        items: digest of its items; empty where no step is recorded.
    """

    window: Sequence[Batch]
    lr: float
    items: str = ""


@dataclass(slots=True)
class Models:
    """The models of a fit and how their outputs are read.

    Attributes:
        student: the module that the user gave.
        source: the teacher's source, or None.
        teacher: the source's live module, a list of them where there are several, or None.
        guard: watches the frozen teacher, or None.
        student_features: captures what losses ask of the student; None where they ask nothing.
        teacher_features: the same for the teacher.
        heads: what each loss and metric reads as logits and labels.
        align: makes the teacher's classes those of the student.
        average: exponential moving average of the student, or None.
        teach: whether training losses need the teacher.
        own_inputs: by role, what makes the student's or the teacher's inputs of the batch's, where they differ.
    """

    student: nn.Module
    source: TeacherSource | None
    teacher: nn.Module | None
    guard: FrozenGuard | None
    student_features: Capture | None
    teacher_features: Capture | None
    heads: Heads
    align: Callable[[Batch], None] | None
    average: MovingAverage | None
    teach: bool
    own_inputs: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    @property
    def evolving_source(self) -> TeacherSource | None:
        """The source of a teacher that changes while the student trains."""
        return self.source if self.source is not None and self.source.evolving else None

    @property
    def evolving(self) -> list[nn.Module]:
        """The modules of a teacher that changes while the student trains."""
        return [] if self.evolving_source is None else self.evolving_source.modules()

    @property
    def learning(self) -> list[nn.Module]:
        """The modules of a teacher that is trained beside the student."""
        return [] if self.evolving_source is None or not self.evolving_source.learns else self.evolving

    @property
    def averaged(self) -> list[nn.Module]:
        """The moving average of the student, where there is one."""
        return [] if self.average is None else [self.average.module]

    @property
    def moving(self) -> list[nn.Module]:
        """Every module that changes in a fit: those that must not where nothing is trained."""
        return [self.student, *self.evolving]


@dataclass(slots=True, eq=False)
class Fit:
    """One fit: what the loop reads and changes."""

    settings: Settings
    models: Models
    objective: Objective
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    lr_waits: bool
    parameters: list[nn.Parameter]
    clipped: list[list[nn.Parameter]]
    kinds: list[list[nn.Parameter]]
    precision: Precision
    runtime: Runtime
    strategy: Alone
    transforms: list[BatchTransform]
    feed: Feed
    evaluation: Callable[[nn.Module], Mapping[str, Any]] | Iterable[Any] | None
    notices: Notices
    metrics: dict[str, Metric]
    monitor: Monitor
    calls: Dispatch
    stateful: Mapping[str, Any]
    loggers: Loggers
    records_steps: bool
    epochs: int
    steps: int
    out: Path | None
    context: FitContext
    step_context: StepContext
    ledger: Ledger
    interval: Means
    epoch_means: Means
    to_batch: Callable[[Any], Batch]
    found: Flag
    buffers: BufferSnapshot
    hidden: HiddenBuffers
    signature: dict[str, Any] = field(default_factory=dict)
    frozen: dict[str, nn.Parameter] = field(default_factory=dict)
    position: Position = field(default_factory=Position)
    started: int = 0
    stepping: bool = False
    unread: dict[int, Unread] = field(default_factory=dict)
    latest: dict[str, float | None] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    sample: Batch | None = None
    skipped: int = 0
    seconds: float = 0.0
    stopping: bool = False
    saving: bool = False
    signal: int = 0
    checked: bool = False
    differentiated: bool = False

    def progress(self) -> Progress:
        """What schedules are a function of."""
        metrics = {name: value for name, value in self.latest.items() if value is not None}
        return Progress(self.position.step, self.steps, self.position.epoch, self.epochs, metrics)

    def note(self, decisions: Iterable[Decision]) -> bool:
        """Note what controllers decided in this process; True when one said to skip."""
        skip = False
        for decision in decisions:
            skip |= decision is Decision.SKIP
            self.stopping |= decision is Decision.STOP
            self.saving |= decision is Decision.SAVE
        return skip

    def skips(self, decisions: Iterable[Decision]) -> bool:
        """Note what controllers decided; True when one, in any process, said to skip. Every process must ask."""
        return self.runtime.any(self.note(decisions))

    def agree(self) -> None:
        """Let every process know what any of them decided: to stop, to write a checkpoint, to follow a signal."""
        self.signal = interrupts.pending()
        if self.runtime.several:
            stopping, saving, self.signal = self.runtime.processes.largest([self.stopping, self.saving, self.signal])
            self.stopping, self.saving = bool(stopping), bool(saving)

    def waiting(self) -> AbstractContextManager[None]:
        """The context of a wait for data, which may never come: a signal leaves at once by ``Interrupted``.

        Not among several processes: those agree on leaving after each step.
        """
        return nullcontext() if self.runtime.several else interrupts.lifted()

    def leave_if_asked(self) -> None:
        """Between two batches of an evaluation: leave, if a signal has asked any process to.

        Raises:
            Interrupted: it has.
        """
        self.agree()
        if self.signal:
            raise Interrupted(self.signal)
