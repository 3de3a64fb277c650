"""The engine: one frozen teacher, one student, one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal, SupportsIndex

import torch
from torch import Tensor, nn

from kdengine import _interrupts as interrupts
from kdengine.api import (
    Batch,
    BatchTransform,
    ConfigurationError,
    ExceptionContext,
    FitContext,
    Loss,
    Progress,
    RunInfo,
    Schedule,
    StepContext,
)
from kdengine.api.loss import name_losses
from kdengine.engine import arguments, batching, loop, random, rundir, state
from kdengine.engine.assembly import (
    Classes,
    ask_together,
    attached,
    make_models,
    make_strategy,
    set_up_losses,
    trainable,
)
from kdengine.engine.buffers import BufferSnapshot, HiddenBuffers
from kdengine.engine.compiled import compile_in_place
from kdengine.engine.conclusion import conclude
from kdengine.engine.copying import check_picklable, copied_state, packed, unpacked
from kdengine.engine.evaluate import check_evaluation, measure
from kdengine.engine.expected import check_expected
from kdengine.engine.feed import Feed
from kdengine.engine.fit import Fit, Models
from kdengine.engine.foreign import ForeignSteps
from kdengine.engine.gradient_checks import frozen_parameters
from kdengine.engine.heads import Heads, Reading
from kdengine.engine.last_batch import check_last_batch
from kdengine.engine.ledger import Flag, Ledger, Means
from kdengine.engine.loader import Loader
from kdengine.engine.loggers import LoggerLike, Loggers, make_loggers
from kdengine.engine.metrics import MetricLike, make_metrics
from kdengine.engine.modes import TrainingModes, lent
from kdengine.engine.monitor import Monitor
from kdengine.engine.naming import check_names
from kdengine.engine.notices import Notices
from kdengine.engine.objective import Objective
from kdengine.engine.objective_module import ObjectiveModule
from kdengine.engine.optimizers import BROUGHT, Named, OptimizerLike, clipped_together, make_optimizer, part_kinds
from kdengine.engine.precision import Precision
from kdengine.engine.recall import recall
from kdengine.engine.result import Result
from kdengine.engine.runtime import Runtime
from kdengine.engine.schedulers import SchedulerLike, make_lr_scheduler, waits_for_metric
from kdengine.engine.settings import (
    MonitorMode,
    NonFinitePolicy,
    PrecisionName,
    Settings,
    StrategyName,
    check_setting,
)
from kdengine.engine.signature import Record, optimizer_options, signature
from kdengine.engine.teacher import TeacherLike, as_source
from kdengine.engine.update import by_kind
from kdengine.host import Host
from kdengine.host.dispatch import ROLES

Resume = Literal["auto"] | bool | None


_GIVEN_ONCE: Final = frozenset(
    {"teacher", "metrics", "plugins", "device", "batch", "output", "labels", "student_inputs", "teacher_inputs", "out"}
    | {field.name for field in fields(Settings)} - {"seed"}
)
"""Arguments that are read when an engine is made."""


class Engine:
    """Trains a student under a frozen teacher.

    Args:
        student: the model that trains.
        teacher: a module (it is frozen), a :class:`~kdengine.TeacherSource`, several of these (whose distributions
            are averaged), or None for plain training.
        losses: losses by label, or a sequence of them.
        weights: factor of each label: a number or a schedule; 1 where absent. A list gives one for each loss, in order.
        optimizer: a ``torch.optim.Optimizer``, or ``fn(named_parameters)`` that makes one. A factory gets the
            losses' own parameters too; to an instance they are added as a parameter group.
        lr_scheduler: an instance, or ``fn(optimizer, steps)``; stepped at every optimizer step
            (``ReduceLROnPlateau``: at every evaluation, on the monitored metric).
        metrics: by name: a builtin's name, a :class:`~kdengine.Metric`, an object with update, compute and reset
            (as in torchmetrics), or ``fn(logits, labels)``, whose values are averaged over the labelled items. In a
            list, a metric has its own name.
        loggers: names, :class:`~kdengine.Logger` instances or ``fn(record, step=n)``; None for the console, an
            empty list for silence.
        batch_transforms: applied in order to each optimizer step's batch.
        plugins: plugins whose callbacks run, or a ready :class:`~kdengine.host.Host`.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast; fp16 scales the loss).
        accumulate: micro-batches per optimizer step.
        clip: largest gradient norm over student and loss parameters.
        ema: decay of a moving average of the student; then evaluated and exported in its place (:attr:`averaged`).
        compile: whether the student runs under ``torch.compile``.
        classes: ``"shared"``, or for each student class the teacher's, when their class counts differ.
        nonfinite: what to do when a loss or gradient is not finite: ``raise``, ``skip`` the update, or
            ``rollback`` to the last checkpoint.
        device: ``auto`` (cuda, mps, cpu) or a device.
        strategy: what the processes that ``torchrun`` starts do with the student: ``ddp`` keeps a copy in each,
            ``fsdp`` a shard. One process needs neither.
        seed: seeds every generator at the start of a fit; None leaves them alone.
        batch: reads a loader's item as a :class:`~kdengine.Batch`, when it is of no known form.
        output: reads a model's output, the teacher's and the student's alike, as logits, when it is of no known form or
            its classes are not in the last dimension; or, for models with several heads, functions by the label of a
            loss or the name of a metric: ``{"age": lambda output: output["age"]}``. What is not named finds its logits
            as usual.
        labels: reads the labels that the loader gives, in the same two forms; they may then be any structure of
            tensors.
        student_inputs: makes the student's inputs of the batch's, where it takes others than the teacher: other
            keywords, columns or sizes. It is called at every forward, with the inputs on their device.
        teacher_inputs: the same for the teacher; what a source's own ``transform`` gets.
        out: run directory; nothing is written without.
        name: name of the fit in records.
        log_every: optimizer steps between training records.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        checkpoint_every: optimizer steps between checkpoints, beside the one at every epoch's end.
        keep: how many checkpoints to keep, beside the best.
        monitor: metric that decides which evaluation is the best; the first by default.
        monitor_mode: ``"max"`` or ``"min"``: which way that metric is better, where it does not know it itself.
        gradient_shares: whether evaluations measure each term's share of the gradient.
        trace_hooks: whether to time every callback; read :attr:`hook_times` after the fit.

    Example:
        >>> from kdengine.losses import KD
        >>> teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> engine = Engine(
        ...     student, teacher, losses={"kd": KD(temperature=2.0)}, loggers=[],
        ...     optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
        ... )
        >>> engine.fit([torch.randn(8, 4) for _ in range(5)], epochs=2).steps
        10
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: TeacherLike | None = None,
        *,
        losses: Mapping[str, Loss] | Sequence[Loss] | Loss,
        optimizer: OptimizerLike | None = None,
        weights: Mapping[str, float | Schedule] | Sequence[float | Schedule] | None = None,
        lr_scheduler: SchedulerLike = None,
        metrics: Mapping[str, MetricLike] | Sequence[MetricLike] | None = None,
        loggers: Sequence[LoggerLike] | LoggerLike | None = None,
        batch_transforms: Sequence[BatchTransform] = (),
        plugins: Iterable[Any] | Host = (),
        precision: PrecisionName = "fp32",
        accumulate: int = 1,
        clip: float | None = None,
        ema: float | None = None,
        compile: bool = False,
        classes: Classes = None,
        nonfinite: NonFinitePolicy = "raise",
        device: str | torch.device = "auto",
        strategy: StrategyName = "ddp",
        seed: int | None = None,
        batch: Callable[[Any], Batch] | None = None,
        output: Reading = None,
        labels: Reading = None,
        student_inputs: Callable[[Any], Any] | None = None,
        teacher_inputs: Callable[[Any], Any] | None = None,
        out: str | Path | None = None,
        name: str = "student",
        log_every: int = 50,
        evaluate_every: int = 1,
        checkpoint_every: int | None = None,
        keep: int = 2,
        monitor: str | None = None,
        monitor_mode: MonitorMode | None = None,
        gradient_shares: bool = False,
        trace_hooks: bool = False,
    ) -> None:
        self.settings = Settings(
            name=name,
            seed=0 if seed is None else seed,
            precision=precision,
            accumulate=accumulate,
            clip=clip,
            ema=ema,
            compile=compile,
            nonfinite=nonfinite,
            strategy=strategy,
            log_every=log_every,
            evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every,
            keep=keep,
            monitor=monitor,
            monitor_mode=monitor_mode,
            gradient_shares=gradient_shares,
            trace_hooks=trace_hooks,
        )
        if nonfinite == "rollback" and out is None:
            raise ConfigurationError(
                "nonfinite='rollback' goes back to a checkpoint, so it needs a run directory: out="
            )
        self.student = arguments.student_module(student)
        self.losses = name_losses(losses)
        self.weights = arguments.weights_by_label(weights, self.losses)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.loggers = loggers
        self.batch_transforms = arguments.batch_transforms(batch_transforms)
        self.host = plugins if isinstance(plugins, Host) else Host(plugins)
        self.source = as_source(teacher, self.host)
        self.metrics = make_metrics(metrics, self.host)
        check_names(self.losses, self.weights, self.metrics)
        self.classes: Classes = arguments.class_map(classes)
        self.seed = None if seed is None else self.settings.seed
        self.out = arguments.run_directory(out)
        self.hook_times: list[Any] = []
        self.runtime = Runtime(device)
        self.heads = Heads(output, labels, [*self.losses, *self.metrics])
        self.notices = Notices()
        own = arguments.function("batch", batch)
        self._to_batch = batching.Reader(own, self.heads.read_labels, structured=self.heads.relabels)
        self._own_inputs = {
            role: given
            for role, own_inputs in (("student", student_inputs), ("teacher", teacher_inputs))
            if (given := arguments.function(f"{role}_inputs", own_inputs)) is not None
        }
        taught = [] if self.source is None or not self.source.learns else self.source.modules()
        self._modes = [TrainingModes(student), *(TrainingModes(module, "teacher") for module in taught)]
        self._running = False
        self._record = Record()
        self._foreign = ForeignSteps(self.notices)
        self._averaged: nn.Module | None = None
        self._fit: Fit | None = None
        self._built: tuple[Models, Objective, Precision] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; one that nothing would read again is refused."""
        if name in _GIVEN_ONCE and "_built" in self.__dict__:
            raise ConfigurationError(
                f"{name} is an argument of Engine that cannot be changed in one that is made; make another: "
                f"Engine(..., {name}=...)"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What it was given, and the models as they are: what belongs to a fit stays behind.

        Raises:
            ConfigurationError: a fit is running, whose hooks are on the models.
        """
        if self._running:
            raise ConfigurationError(
                "an engine cannot be copied or pickled while it trains; do it before or after fit(), or copy the model "
                "alone"
            )
        fresh: dict[str, Any] = {"_fit": None, "_built": None, "_foreign": ForeignSteps(self.notices), "hook_times": []}
        return {**self.__dict__, **fresh}

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Travel to another process; what cannot is said in words."""
        state = self.__getstate__()
        check_picklable(self, state)
        return unpacked, (type(self), packed(self, state))

    def __copy__(self) -> Engine:
        """Copy the engine around the same models."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__getstate__())
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Copy the engine with models of its own."""
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copied_state(self.__getstate__(), memo))
        return made

    def fit(
        self,
        train_loader: Iterable[Any],
        evaluation: Iterable[Any] | Callable[[nn.Module], Mapping[str, Any]] | None = None,
        *,
        epochs: int,
        steps_per_epoch: int | None = None,
        sharded: bool = False,
        resume: Resume = None,
    ) -> Result:
        """Train for a number of epochs.

        Args:
            train_loader: a :func:`kdengine.loader`, a ``DataLoader`` or any iterable of batches.
            evaluation: a loader for the engine's metrics, or ``fn(student) -> {name: number}``.
            epochs: passes over the loader.
            steps_per_epoch: optimizer steps per epoch: for a loader without a length, or for fewer than it gives.
            sharded: says, under several processes, that a loader of your own gives each process its own batches.
            resume: ``"auto"`` goes on from the run directory's last checkpoint where there is one; True insists on
                one; None refuses a run directory that has been used.

        Returns:
            the outcome; for a run that is already finished, the stored one, also where its checkpoints were removed
            (``history`` then has its evaluations alone).

        Raises:
            ConfigurationError: something that was given cannot work together.
            NonFiniteError: a loss or gradient is not finite under the policy ``raise``.
            CheckpointError: the run directory belongs to another fit, or is finished with fewer epochs and has no
                checkpoint to go on from.
        """
        epochs = check_setting("epochs", epochs)
        arguments.check_resume(resume)
        check_evaluation(evaluation, -(-epochs // self.settings.evaluate_every))
        with ExitStack() as held:
            self._occupy(held, resume)
            feed = self._feed(train_loader, steps_per_epoch, sharded=sharded)
            return self._fit_to(feed, evaluation, epochs, resume)

    def _occupy(self, held: ExitStack, resume: Resume) -> None:
        """Let the main process have the run directory to itself, as long as the stack lasts."""
        if (out := self.out) is not None:
            self.runtime.processes.on_main(lambda: held.enter_context(rundir.occupied(out, resume=bool(resume))))

    def _fit_to(
        self,
        feed: Feed,
        evaluation: Iterable[Any] | Callable[[nn.Module], Mapping[str, Any]] | None,
        epochs: int,
        resume: Resume,
    ) -> Result:
        """Assemble the fit, go back to where it stands, and train it to its end."""
        self._fit = self._averaged = None
        with self._lent():
            fit = self._fit = self.assemble(feed, evaluation, epochs)
            check_expected(fit, evaluation)
            with attached(fit.models):
                resumed = bool(resume) and self.out is not None and state.resume(fit)
                if resume and not resumed and (ended := recall(fit)) is not None:
                    return ended
                self._enter(fit, resume, resumed=resumed)
                self._train(fit)
            return conclude(fit, seed=self.seed, plugins=self.host.versions())

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """The context of whatever changes modes, devices or ``requires_grad`` of the models."""
        teacher = [] if self.source is None else self.source.modules()
        try:
            with lent([modes.model for modes in self._modes], teacher, begun=self._has_begun):
                yield
        except BaseException:
            if not self._has_begun():  # the teacher is as it was found: not frozen
                self._fit = self._built = None
            raise

    def _has_begun(self) -> bool:
        return self._fit is not None and self._fit.position.step > self._fit.started

    def _feed(self, loader: Iterable[Any], steps_per_epoch: int | None = None, *, sharded: bool = False) -> Feed:
        feed = Feed(
            loader,
            self.settings.accumulate,
            self._to_batch,
            steps_per_epoch,
            processes=self.runtime.processes,
            sharded=sharded,
        )
        if self.batch_transforms:
            feed.read_whole()
        return feed

    def assemble(
        self,
        feed: Feed,
        evaluation: Iterable[Any] | Callable[[nn.Module], Mapping[str, Any]] | None = None,
        epochs: int | None = None,
    ) -> Fit:
        """Build everything that a fit works on; trains nothing.

        Args:
            feed: of the training data.
            evaluation: as for :meth:`fit`.
            epochs: how long the fit is; None where nobody knows, as in someone's own loop.
        """
        if self.optimizer is None:
            raise ConfigurationError("training needs an optimizer: Engine(optimizer=lambda named: ...)")
        if self.seed is not None:
            random.seed_all(self.seed, self.settings.name)
        for modes in self._modes:
            modes.look()
        self.runtime.replicate(self.runtime.place(self.student))
        models, objective, precision = self._models(feed.example)
        strategy = make_strategy(self.settings.strategy, objective, models, precision, self.runtime, feed.example)
        for modes in self._modes:
            modes.enter()
            modes.warn(self.notices)
        check_last_batch(feed, models, precision, self.runtime)
        named = trainable(self.student, objective, models.learning)
        optimizer = make_optimizer(self.optimizer, named, self.notices)
        if strategy.shards:
            part_kinds(optimizer)
        options = optimizer_options(optimizer)
        known, epochs = epochs, epochs or 1
        steps = epochs * feed.steps_per_epoch
        lr_scheduler = make_lr_scheduler(self.lr_scheduler, optimizer, named, steps, known, self.notices)
        if self.seed is not None and not self.runtime.is_main:
            random.seed_all(self.seed, self.settings.name, self.runtime.processes.rank)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        calls = self.host.dispatch(trace=self.settings.trace_hooks)
        ask_together(calls, self.runtime)
        loggers = self._loggers()
        context = FitContext(
            name=self.settings.name,
            student=self.student,
            teacher=[] if models.source is None else models.source.modules(),
            losses=objective.losses,
            optimizer=optimizer,
            device=self.runtime.device,
            steps=steps,
            epochs=epochs,
            out=self.out,
            rank=self.runtime.processes.rank,
            world=self.runtime.processes.world,
        )
        ledger = Ledger(self.runtime)
        fit = Fit(
            settings=self.settings,
            models=models,
            objective=objective,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_waits=waits_for_metric(lr_scheduler),
            parameters=parameters,
            clipped=clipped_together(parameters, models.learning),
            kinds=by_kind(parameters),
            precision=precision,
            runtime=self.runtime,
            strategy=strategy,
            transforms=self.batch_transforms,
            feed=feed,
            evaluation=evaluation,
            notices=self.notices,
            metrics=self.metrics,
            monitor=Monitor(self.settings, self.metrics, self.notices),
            calls=calls,
            stateful=calls.stateful,
            loggers=loggers,
            records_steps=self.runtime.any(bool(loggers.of_steps)),
            epochs=epochs,
            steps=steps,
            out=self.out,
            context=context,
            step_context=StepContext(context),
            ledger=ledger,
            interval=Means(objective.names),
            epoch_means=Means(objective.names),
            to_batch=self._to_batch,
            found=Flag(self.runtime.device),
            buffers=BufferSnapshot([*models.moving, *objective.forgetful], steps=2 if ledger.late else 1),
            hidden=HiddenBuffers(nn.ModuleList([*models.moving, objective.modules, *models.averaged])),
        )
        fit.frozen = frozen_parameters(self.student, parameters)
        fit.signature = self._record.begin(signature(fit, options))
        return fit

    def _loggers(self) -> Loggers:
        if not self.runtime.is_main:
            return Loggers({})
        return make_loggers(self.loggers, self.host, records=self.out is not None)

    def _models(self, example: Callable[[], Batch]) -> tuple[Models, Objective, Precision]:
        mutual = self.source is not None and self.source.learns
        objective = Objective(self.losses, self.weights, mutual=mutual, heads=self.heads, notices=self.notices)
        models = make_models(
            self.student,
            self.source,
            objective.losses,
            runtime=self.runtime,
            heads=self.heads,
            classes=self.classes,
            ema=self.settings.ema,
            own_inputs=self._own_inputs,
        )
        precision = Precision(self.settings.precision, self.runtime.device)
        objective.place(self.runtime.device, next(self.student.parameters()).dtype)
        set_up_losses(objective, models, precision, self.runtime, self.host, example)
        if self.settings.compile:
            compile_in_place(self.student)
        self._built = models, objective, precision
        return self._built

    def _enter(self, fit: Fit, resume: Resume, *, resumed: bool) -> None:
        """Start the loggers, make sure that the state can be stored."""
        fit.started = fit.position.step
        if resume is True and not resumed:
            raise ConfigurationError(f"nothing to resume: no checkpoint under {self.out}")
        fit.loggers.start(RunInfo(self.settings.name, self.out, fit.steps, fit.epochs, fit.position.step))
        if resumed:
            done = fit.position.epoch >= fit.epochs or fit.stopping
            fit.loggers.message(
                f"{self.settings.name}: already finished" if done else
                f"{self.settings.name}: resumed at step {fit.position.step} of {fit.steps}"
            )  # fmt: skip
        elif self.out is not None:
            state.check_storable(fit)

    def _train(self, fit: Fit) -> None:
        status = "failed"
        self._running = True
        self._averaged = None if fit.models.average is None else fit.models.average.module
        try:
            with interrupts.watching(), interrupts.deferred():
                loop.run(fit)
            if fit.models.guard is not None:
                fit.models.guard.confirm()
            status = "stopped" if fit.stopping else "finished"
        except BaseException as error:
            explained = self.runtime.processes.explain(error)
            self._report(fit, explained)
            if explained is not error:
                raise explained from error
            raise
        finally:
            self._running = fit.stepping = False
            self._record.end(signature(fit, optimizer_options(fit.optimizer)))
            fit.optimizer.zero_grad()
            try:
                if fit.calls.fit_end is not None:
                    fit.calls.fit_end(fit.context)
            finally:
                self.hook_times = fit.calls.report()
                fit.loggers.finish(status)

    def _report(self, fit: Fit, error: BaseException) -> None:
        """Tell the ``exception`` hook; what it raises itself is attached, and never hides the error."""
        if fit.calls.exception is None:
            return
        try:
            fit.calls.exception(ExceptionContext(fit.context, error, fit.position.step))
        except Exception as second:
            error.add_note(f"besides, {second}")

    def train_step(self, micro_batches: Sequence[Any]) -> dict[str, float]:
        """One optimizer step over micro-batches, in someone's own loop.

        Inside a fit (from a callback) it is a further step of that fit; outside, the first call builds the
        optimizer for a fit of unknown length.

        Args:
            micro_batches: items as a loader would yield them.

        Returns:
            ``loss`` and each term's mean; on an accelerator those of the step before (empty at first).
        """
        micro_batches = list(micro_batches)
        if not micro_batches:
            raise ConfigurationError("train_step takes the micro-batches of one optimizer step, at least one; got none")
        if self._running:
            return self._further_step(micro_batches)
        with self._lent():
            if self._fit is None:
                self._fit = self.assemble(self._feed_of(micro_batches))
                average = self._fit.models.average
                self._averaged = None if average is None else average.module
            for modes in self._modes:
                modes.look()
                modes.enter()
            return self._further_step(micro_batches)

    def _feed_of(self, micro_batches: Sequence[Any]) -> Feed:
        processes = self.runtime.processes
        return Feed(
            micro_batches, len(micro_batches), self._to_batch, steps_per_epoch=1, processes=processes, sharded=True
        )

    def _further_step(self, micro_batches: Sequence[Any]) -> dict[str, float]:
        fit = self._fit
        assert fit is not None, "a step is one of a fit"
        means = Means(fit.objective.names)
        with attached(fit.models):
            report = loop.further_step(fit, [self._to_batch(item) for item in micro_batches])
        if report is not None:
            means.add(report)
        return means.values()

    def objective(
        self,
        batch: Any,
        *,
        student: nn.Module | None = None,
        progress: Progress | None = None,
        window: Sequence[Any] | None = None,
    ) -> Tensor:
        """The engine's objective for one batch, for a loop that is not the engine's.

        The teacher and the student run, every term is reduced over this batch, and the weighted sum comes back with
        a graph; backward and the optimizer are the caller's. What a loss remembers of a batch it writes down when this
        is called again.

        Batch transforms, callbacks, accumulation, clipping and averaging are the other loop's: those that this engine
        was given do not act here, which it says once.

        Args:
            batch: an item as a loader would yield it.
            window: all batches of the optimizer step that this one is part of, where the other loop accumulates
                gradients. Every term is then divided by the items of them all, so that the sum of the gradients is that
                of the engine's own step; do not divide by their number again.
            student: run this in the student's place: the same module as a foreign loop has wrapped it.
            progress: where training stands, for schedules.

        Example:
            >>> from kdengine.losses import KD
            >>> engine = Engine(nn.Linear(4, 3), nn.Linear(4, 3), losses=[KD()])
            >>> engine.objective(torch.randn(2, 4)).requires_grad
            True
        """
        self._warn_of_drift(batch, student)
        read = self._to_batch(batch)
        models, objective, precision = self._models_for(read)
        if not self._foreign.begun:  # what is said once is not worked out at every call
            self._say_what_does_not_act()
        others = [] if window is None else [self._to_batch(item) for item in window]
        objective.follow_weights(self.weights)
        if progress is not None:
            objective.advance(progress)
        return self._foreign.objective(
            models, objective, precision, read, others, student=student, device=self.runtime.device
        )

    def as_module(self, batch: Any) -> nn.Module:
        """Join student and losses in one module whose forward pass is :meth:`objective`.

        For a loop that wraps the model that it trains (DistributedDataParallel, Accelerate), or stores its state dict:
        parameters that losses bring are then exchanged and stored with the student's. The teacher is no part of it.

        Args:
            batch: an item as a loader would yield it, on whose shapes projectors are made.

        Example:
            >>> from kdengine.losses import Hint
            >>> engine = Engine(nn.Linear(4, 3), nn.Linear(4, 5), losses=[Hint("", "")])
            >>> module = engine.as_module(torch.randn(2, 4))
            >>> sorted({name.split(".")[0] for name in module.state_dict()})
            ['losses', 'student']
            >>> module(torch.randn(2, 4)).requires_grad
            True
        """
        _, objective, _ = self._models_for(self._to_batch(batch))
        return ObjectiveModule(self.student, objective.modules, self.objective)

    def _warn_of_drift(self, batch: Any, student: nn.Module | None) -> None:
        """Warn once where another loop's processes would train the losses' own parameters apart from each other."""
        if isinstance(student, nn.parallel.DistributedDataParallel) and (own := self.loss_parameters(batch)):
            self.notices.once(
                f"the losses bring parameters of their own ({own[0][0]}, ...) that are not in the module which "
                "DistributedDataParallel wraps: every process would train its own. Wrap both: "
                "model = DistributedDataParallel(engine.as_module(batch)); loss = model(batch)"
            )

    def _say_what_does_not_act(self) -> None:
        """Warn once of arguments that have no part in a loop that is not the engine's."""
        idle = {
            "batch_transforms": bool(self.batch_transforms),
            "accumulate": self.settings.accumulate > 1,
            "clip": self.settings.clip is not None,
            "ema": self.settings.ema is not None,
            "callbacks of plugins": self._has_callbacks(),
        }
        if names := [name for name, given in idle.items() if given]:
            self.notices.once(
                f"Engine.objective() computes the losses of one batch; {', '.join(names)} of this engine do not act in "
                "it: they belong to the loop that calls it. For accumulation pass window=[the batches of the step]; "
                "Engine.train_step() takes a whole step"
            )

    def _has_callbacks(self) -> bool:
        calls = self.host.dispatch()
        return any(getattr(calls, name) is not None for name in ROLES)

    def loss_parameters(self, batch: Any) -> Named:
        """Parameters that the losses bring themselves (projectors), made on the shapes of ``batch``, and a peer's.

        A foreign loop adds them to its optimizer.
        """
        models, objective, _ = self._models_for(self._to_batch(batch))
        return [item for item in trainable(self.student, objective, models.learning) if item[0].startswith(BROUGHT)]

    def _models_for(self, example: Batch) -> tuple[Models, Objective, Precision]:
        """The models as they were last built: those of the last fit, where there was one."""
        if self._built is None or (not self._running and self._has_other_losses(self._built[1])):
            with self._lent():
                self._models(lambda: example)
        assert self._built is not None
        return self._built

    def _has_other_losses(self, objective: Objective) -> bool:
        """Whether losses were replaced, added or taken away since the objective was made."""
        own = {label: loss for label, loss in objective.losses.items() if label not in objective.peers}
        return own.keys() != self.losses.keys() or any(own[label] is not loss for label, loss in self.losses.items())

    @property
    def averaged(self) -> nn.Module | None:
        """The moving average of the student (``ema``) as training has left it; None before, and without ``ema``."""
        return self._averaged

    def evaluate(self, loader: Iterable[Any], *, averaged: bool = True) -> dict[str, float | None]:
        """The engine's metrics over a loader, for the student as it is now.

        Args:
            loader: read once, so it may be a generator.
            averaged: whether the moving average is measured where training keeps one (``ema``), as in a fit's own
                evaluations; False measures the student itself.
        """
        if self._built is None:
            whole = isinstance(loader, Loader)
            feed = Feed(loader, 1, self._to_batch, None if whole else 1, processes=self.runtime.processes, sharded=True)
            with self._lent():
                self._models(feed.example)
            loader = loader if whole else feed.reopened()
        assert self._built is not None
        models, _, precision = self._built
        if models.guard is not None:
            models.guard.check()
        return measure(
            loader,
            self.metrics,
            models=models,
            precision=precision,
            runtime=self.runtime,
            to_batch=self._to_batch,
            model=self.averaged if averaged else None,
        )
