"""The training loop, from top to bottom, with every hook point.

::

    fit_start
    for epoch:
        epoch_start
        for window of micro-batches:              one optimizer step; read ahead, so that every D is known
            batch                                 each micro-batch, still on the host: mixup and its kin
            step_start                            may skip the step
            for micro-batch:
                teacher -> teacher_output         may replace the output
                student, losses -> loss_terms
                backward
            backward_end                          gradients complete
            optimizer_step                        may skip the update
            step_end                              may stop, or ask for a checkpoint
            checkpoint_saved                      when one was due
        evaluate_start, evaluate_end              may stop
        epoch_end                                 may stop
        checkpoint_saved
    exception                                     when something was raised
    fit_end
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from torch import Tensor

from kdengine import _interrupts as interrupts
from kdengine.api import Batch, ConfigurationError
from kdengine.api.errors import LossFailedError
from kdengine.engine import random
from kdengine.engine.batching import check_transformed, concatenate, place, split
from kdengine.engine.digest import HALF, MODULUS, digest
from kdengine.engine.evaluate import evaluate
from kdengine.engine.fit import Fit, Interrupted, Unread
from kdengine.engine.forward import run_student, run_teacher
from kdengine.engine.gradient_checks import warn_of_uncounted, warn_of_unheld, warn_of_untrained
from kdengine.engine.guard import refusing_student
from kdengine.engine.ledger import StepReport
from kdengine.engine.naming import joined
from kdengine.engine.objective import Masks
from kdengine.engine.output_checks import check_outputs
from kdengine.engine.shares import gradient_shares
from kdengine.engine.state import save
from kdengine.engine.update import clear_gradients, judge, update


def run(fit: Fit) -> None:
    """Train from the fit's position to its last epoch."""
    calls = fit.calls
    if calls.fit_start is not None:
        calls.fit_start(fit.context)
    try:
        while fit.position.epoch < fit.epochs and not fit.stopping:
            run_epoch(fit)
    except Interrupted as interruption:
        save(fit)
        raise interrupts.as_exception(interruption.signal) from None


def run_epoch(fit: Fit) -> None:
    """One epoch, or what is left of it after a resume."""
    position, calls = fit.position, fit.calls
    fit.context.epoch = position.epoch
    if position.batch == 0:
        fit.epoch_means.clear()
        if calls.epoch_start is not None:
            calls.epoch_start(fit.context)
    clock = Clock()
    for window in read_windows(fit, clock):
        before = position.step
        train_step(fit, window)
        fit.agree()
        position.batch += len(window)
        clock.items += sum(batch.size for batch in window)
        if passed(before, position.step, fit.settings.log_every):
            log_training(fit, clock)
        if fit.saving or fit.stopping or fit.signal or checkpoint_due(fit, before):
            read_last_report(fit)
            fit.seconds += clock.lap()
            if fit.signal:
                raise Interrupted(fit.signal)
            save(fit)
        if fit.stopping:
            break
    else:
        end_epoch(fit, clock)


def read_windows(fit: Fit, clock: Clock) -> Iterator[list[Batch]]:
    """The windows of an epoch from the fit's position on.

    A signal does not wait for one that may never come, where reading it leaves the random state of this process alone.
    Before the first, training stands where its last checkpoint does, and none is taken.
    """
    windows = fit.feed.windows(fit.position.epoch, fit.position.batch)
    waiting = fit.waiting if fit.feed.draws_nothing else nullcontext
    begun = False
    while True:
        try:
            with waiting():
                window = next(windows, None)
        except interrupts.Interrupted as interruption:
            if not begun:
                raise interrupts.as_exception(interruption.signal) from None
            read_last_report(fit)
            fit.seconds += clock.lap()
            raise
        if window is None:
            return
        begun = True
        yield window


def train_step(fit: Fit, window: list[Batch]) -> StepReport | None:
    """One optimizer step over a window of micro-batches; returns the report that has become readable."""
    calls, context = fit.calls, fit.step_context
    fit.stepping = True
    context.step, context.epoch = fit.position.step, fit.position.epoch
    if fit.objective.changing:
        fit.objective.advance(fit.progress())
    if fit.transforms or calls.batch is not None:
        window = prepare(fit, window)
    if calls.step_start is not None and fit.skips(calls.step_start(context)):
        fit.skipped += 1
        return finish_step(fit, None)
    fit.buffers.take(fit.position.step)
    scale = fit.precision.scale
    fit.unread[fit.position.step] = Unread(window, learning_rate(fit))
    gather_gradients(fit, window, scale)
    if not fit.differentiated:
        fit.differentiated = True
        if any(
            loss.needs.logits for loss in fit.objective.losses.values()
        ):  # else all behind the features is not meant
            warn_of_untrained(fit.models.student)
    if calls.backward_end is not None:
        calls.backward_end(context)
    report = finish_step(fit, update(fit, scale))
    if fit.models.guard is not None:
        fit.models.guard.confirm_once()
    release(fit, window)
    return report


def further_step(fit: Fit, window: list[Batch]) -> StepReport | None:
    """A step that someone else asks for: in a loop of their own, or a callback between two steps.

    Raises:
        ConfigurationError: a step is under way.
    """
    if fit.stepping:
        raise ConfigurationError(
            "train_step was called in the middle of a step, whose gradients it would take away; call it in "
            "kdengine_on_step_end or another hook between two steps"
        )
    context = fit.step_context
    shown = {name: getattr(context, name) for name in type(context).__slots__}
    try:
        return train_step(fit, window)
    except BaseException:
        abandon_step(fit)
        raise
    finally:
        fit.stepping = False
        for name, value in shown.items():  # callbacks that come after this one see the step that has ended
            setattr(context, name, value)


def abandon_step(fit: Fit) -> None:
    """Leave nothing behind of a step that failed, for one that is taken after it."""
    clear_gradients(fit.optimizer)
    fit.ledger.drop()
    fit.found.take()
    fit.unread.pop(fit.position.step, None)


def release(fit: Fit, window: list[Batch]) -> None:
    """Let go of outputs and graphs, so that the next step's forward takes the memory of this one's."""
    for batch in window:
        batch.student = batch.teacher = None
    fit.step_context.batch = fit.step_context.output = None


def prepare(fit: Fit, window: list[Batch]) -> list[Batch]:
    """Batch transforms over the whole step's batch, then the ``batch`` hook on each micro-batch, on the host."""
    if fit.transforms:
        whole = concatenate(window)
        seed = fit.feed.transform_seed(fit.settings.seed)
        for position, transform in enumerate(fit.transforms):
            made = transform(whole, random.generator(*seed, position, fit.position.step))
            whole = check_transformed(transform, made, whole)
        window = fit.feed.take_share(split(whole, [batch.size for batch in window]))
    if fit.calls.batch is not None:
        context = fit.step_context
        for micro, batch in enumerate(window):
            context.micro, context.batch = micro, batch
            fit.calls.batch(context)
            window[micro] = context.batch
    return window


def gather_gradients(fit: Fit, window: list[Batch], scale: Tensor | float) -> None:
    """Forward and backward of every micro-batch; every D is known before the first forward."""
    masks, counts = [], []
    for batch in window:
        masks.append(fit.objective.masks(batch))
        counts.append(fit.objective.count(batch, masks[-1]))
    divisors = sum_counts(fit, window, counts)
    if fit.models.guard is not None:
        fit.models.guard.check()
    for micro in range(len(window) - 1):
        with fit.strategy.accumulate():
            differentiate(fit, micro, window[micro], masks[micro], counts[micro], divisors, scale)
    differentiate(fit, len(window) - 1, window[-1], masks[-1], counts[-1], divisors, scale)
    fit.strategy.complete()
    if fit.models.guard is not None and not fit.models.guard.tried:
        fit.models.guard.try_forward()
    fit.sample = window[-1]


def sum_counts(fit: Fit, window: list[Batch], counts: Sequence[Sequence[float]]) -> Sequence[float]:
    """D of each term, in float64; where steps are recorded, a digest of the step's items travels with the counts."""
    own = list(map(math.fsum, zip(*counts, strict=True)))
    if not fit.records_steps:
        return fit.runtime.sum_counts(own)
    high, low = divmod(sum(map(digest, window)) % MODULUS, HALF)  # each half, of every process, is exact in float64
    *divisors, high_sum, low_sum = fit.runtime.sum_counts([*own, high, low])
    items = (int(high_sum) * HALF + int(low_sum)) % MODULUS
    fit.unread[fit.position.step].items = f"{items:012x}"
    return divisors


def differentiate(
    fit: Fit,
    micro: int,
    host_batch: Batch,
    masks: Masks,
    counts: Sequence[float],
    divisors: Sequence[float],
    scale: Tensor | float,
) -> None:
    """Forward and backward of one micro-batch."""
    objective = fit.objective
    batch = place(host_batch, fit.runtime.device)
    total, shares = fit.strategy.forward(evaluate_objective, fit, micro, batch, masks, counts, divisors, scale)
    if fit.calls.loss_terms is not None:
        fit.step_context.terms = dict(zip(objective.names, shares, strict=True))
        fit.calls.loss_terms(fit.step_context)
    total.backward()  # type: ignore[no-untyped-call]
    fit.ledger.add(shares, [w if d else 0.0 for w, d in zip(objective.term_weights, divisors, strict=True)])


def evaluate_objective(
    fit: Fit,
    micro: int,
    batch: Batch,
    masks: Masks,
    counts: Sequence[float],
    divisors: Sequence[float],
    scale: Tensor | float,
) -> tuple[Tensor, list[Tensor]]:
    """The scalar to differentiate for one micro-batch, and each term's share of it."""
    run_models(fit, micro, batch)
    try:
        return fit.precision.run_loss(fit.objective.evaluate, batch, masks, counts, divisors, scale)
    except LossFailedError as error:
        error.note_step(fit.position.step + 1)
        raise


def run_models(fit: Fit, micro: int, batch: Batch) -> None:
    """Teacher, then student; their outputs end up on the batch."""
    models, context = fit.models, fit.step_context
    context.micro, context.batch = micro, batch
    if models.teach:
        with nullcontext() if fit.checked or models.evolving_source is not None else refusing_student(models.student):
            context.output = run_teacher(models, fit.precision, batch)
        if fit.calls.teacher_output is not None:
            fit.calls.teacher_output(context)
        batch.teacher = context.output
    batch.student = run_student(models, fit.precision, batch)
    if models.align is not None and models.teach:
        models.align(batch)
    if not fit.checked:
        check_outputs(fit.objective, models, batch, fit.notices)
        fit.checked = True


def finish_step(fit: Fit, report: StepReport | None) -> StepReport | None:
    """What follows every step, updated or not."""
    clear_gradients(fit.optimizer)
    if fit.lr_scheduler is not None and not fit.lr_waits:
        fit.lr_scheduler.step()
    if fit.models.average is not None:
        fit.models.average.update_parameters(fit.models.student)
    if fit.models.evolving_source is not None:
        fit.models.evolving_source.update(fit.models.student)
    if fit.objective.remembering:
        fit.objective.end_step()
    if report is not None:
        take_report(fit, report)
    fit.position.step += 1
    fit.context.step = fit.position.step
    fit.stepping = False
    if fit.calls.step_end is not None:
        fit.note(fit.calls.step_end(fit.step_context))
    return report


def take_report(fit: Fit, report: StepReport) -> None:
    """A step's losses can be read: they count in the means, and loggers of steps get its record."""
    unread = fit.unread.pop(report.step)
    fit.interval.add(report)
    fit.epoch_means.add(report)
    if fit.loggers.of_steps:
        terms = {name: value for name, value in zip(fit.objective.names, report.terms, strict=True) if value == value}
        record = {"batch": unread.items, "loss": report.loss, **terms, "lr": unread.lr}
        fit.loggers.log_step(record, step=report.step + 1)


def read_last_report(fit: Fit) -> None:
    """Wait for the losses of the last step, where they come late: a checkpoint and an epoch's record hold them."""
    report = fit.ledger.flush()
    if report is not None:
        judge(fit, report)
        take_report(fit, report)


def end_epoch(fit: Fit, clock: Clock) -> None:
    """Evaluation, the epoch's record, the hook, the checkpoint."""
    read_last_report(fit)
    warn_of_unheld(fit.frozen, fit.notices)
    number = fit.position.epoch + 1
    if not fit.skipped:
        warn_of_uncounted(fit.epoch_means.absent(fit.objective.term_weights), number, fit.notices)
    record: dict[str, float | None] = {
        "epoch": number,
        "step": fit.position.step,
        **fit.epoch_means.values(),
        "lr": learning_rate(fit),
    }
    if fit.evaluation is not None and (number % fit.settings.evaluate_every == 0 or number == fit.epochs):
        record = joined(record, evaluate_or_keep(fit, clock))
    fit.history.append(record)
    if fit.calls.epoch_end is not None:
        fit.note(fit.calls.epoch_end(fit.context))
    fit.agree()
    fit.position.epoch, fit.position.batch = number, 0
    fit.seconds += clock.lap()
    save(fit)


def evaluate_or_keep(fit: Fit, clock: Clock) -> dict[str, float | None]:
    """Evaluate; where that fails, the steps of the epoch are in a checkpoint first, from which it can be done again.

    Several processes may not have failed together, and a checkpoint is written together: they keep the last one.
    """
    try:
        return evaluate_and_log(fit)
    except Exception as error:
        if fit.out is not None and not fit.runtime.several:
            fit.seconds += clock.lap()
            try:
                error.add_note(
                    f"the steps before this evaluation are in {save(fit)}; resume='auto' (--resume on the command "
                    "line) goes on with the evaluation"
                )
            except Exception as second:
                error.add_note(f"besides, no checkpoint could be written: {second}")
        raise


def evaluate_and_log(fit: Fit) -> dict[str, float | None]:
    """Evaluate, sample the terms' gradient shares, log both, and tell a scheduler that waits for a metric."""
    values = evaluate(fit)
    record: dict[str, float | None] = {"epoch": fit.position.epoch + 1, **values}
    if fit.settings.gradient_shares and not fit.strategy.shards and fit.sample is not None:
        shares = gradient_shares(fit, place(fit.sample, fit.runtime.device))
        record.update({f"gradient_share.{name}": share for name, share in shares.items()})
    fit.loggers.log(record, step=fit.position.step, kind="evaluate")
    if fit.lr_waits and (followed := fit.monitor.followed(values)) is not None:
        fit.lr_scheduler.step(followed)
    return values


def log_training(fit: Fit, clock: Clock) -> None:
    """One record of means since the last."""
    record = {
        "epoch": fit.position.epoch + 1,
        **fit.interval.values(),
        **fit.objective.scalars(),
        "lr": learning_rate(fit),
        "items_per_second": clock.rate(),
    }
    fit.interval.clear()
    fit.loggers.log(record, step=fit.position.step, kind="train")


def learning_rate(fit: Fit) -> float:
    """The first parameter group's learning rate."""
    return float(fit.optimizer.param_groups[0]["lr"])


def checkpoint_due(fit: Fit, before: int) -> bool:
    """Whether the policy asks for a checkpoint after this step; epochs save on their own."""
    every = fit.settings.checkpoint_every
    return every is not None and passed(before, fit.position.step, every)


def passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple was reached or passed: a callback may have trained further steps.

    >>> [passed(before, before + 2, 5) for before in (2, 3, 4, 5)]
    [False, True, True, False]
    """
    return now // every > before // every


class Clock:
    """Wall time and items since the last look."""

    def __init__(self) -> None:
        self.items = 0
        self._lap = self._rate = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        return seconds

    def rate(self) -> float:
        """Items per second since the last call."""
        now = time.perf_counter()
        rate, self.items, self._rate = self.items / max(now - self._rate, 1e-9), 0, now
        return rate
