"""Evaluation: metrics over a loader, leaving modes and random state as found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from kdengine.api import Batch, ConfigurationError, EvaluateContext, Metric, Output
from kdengine.api.structure import map_tensors
from kdengine.engine import random
from kdengine.engine.batching import place
from kdengine.engine.fit import Fit, Models
from kdengine.engine.forward import run_student, run_teacher
from kdengine.engine.loader import Loader
from kdengine.engine.loaders import check_loader, reads_once
from kdengine.engine.metrics import as_numbers, describe
from kdengine.engine.modes import evaluation_mode
from kdengine.engine.naming import placed
from kdengine.engine.output_checks import check_metrics
from kdengine.engine.precision import Precision
from kdengine.engine.runtime import Runtime


def measure(
    loader: Iterable[Any],
    metrics: Mapping[str, Metric],
    *,
    models: Models,
    precision: Precision,
    runtime: Runtime,
    to_batch: Callable[[Any], Batch],
    model: nn.Module | None = None,
    pause: Callable[[], None] = lambda: None,
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, float | None]:
    """Every metric over every batch of a loader.

    Several processes share each batch of a :func:`kdengine.loader`, and every one of them then has the logits, labels
    and index of all: the metrics are those of one process. Any other loader is read whole by each of them.

    Args:
        loader: yields what a training loader would.
        metrics: metric by name.
        models: student and teacher.
        precision: how the models compute.
        runtime: where.
        to_batch: reads a loader's item as a batch.
        model: evaluated in the student's place (its moving average).
        pause: called after each batch that all processes share; may leave by raising.
        waiting: the context in which the loader is waited for; may leave by raising.
    """
    check_loader(loader)
    student = models.student if model is None else model
    teach = any(metric.needs_teacher for metric in metrics.values())
    for metric in metrics.values():
        metric.reset()
    pooled = runtime.several and isinstance(loader, Loader)
    batches = 0
    with random.preserved(), evaluation_mode(student, *models.evolving), torch.no_grad():
        stream = loader.batches(0, share=runtime.share) if isinstance(loader, Loader) else loader
        for item in _read_within(waiting, stream):
            batch = place(to_batch(item), runtime.device)
            if teach:
                batch.teacher = run_teacher(models, precision, unlabelled(batch), features=False)
            batch.student = run_student(models, precision, batch, model=student, features=False)
            if teach and models.align is not None:
                models.align(batch)
            if not batches:
                check_metrics(metrics, models, batch)
            update_metrics(metrics, models, batch, runtime if pooled else None)
            batches += 1
            if pooled or not runtime.several:  # others may read more or fewer batches of a loader that is not pooled
                pause()
    if batches == 0:
        raise ConfigurationError(f"the evaluation loader {type(loader).__name__} yielded no batch")
    values: dict[str, float | None] = {}
    for name, metric in metrics.items():
        values |= as_numbers(name, metric.compute())
    return values


def check_evaluation(evaluation: Any, times: int) -> None:
    """Refuse an iterator that is read to its end by the first of several evaluations.

    Raises:
        ConfigurationError: it is one.
    """
    if times > 1 and not callable(evaluation) and reads_once(evaluation):
        raise ConfigurationError(
            f"the evaluation loader is a {type(evaluation).__name__}, which is read once, but the fit evaluates "
            f"{times} times; give what begins anew: a loader, or a list of the batches"
        )


def update_metrics(metrics: Mapping[str, Metric], models: Models, batch: Batch, pooling: Runtime | None) -> None:
    """Let every metric take in a batch, as it sees it: with its own head, and with the items of all processes.

    Args:
        metrics: by name.
        models: that ran.
        batch: with their outputs.
        pooling: gathers the items of all processes, or None where each has the whole batch.
    """
    shared: Batch | None = None
    for name, metric in metrics.items():
        seen = models.heads.view(name, batch)
        if pooling is not None and seen is batch:
            seen = shared = shared or pool(batch, pooling)
        elif pooling is not None:
            seen = pool(seen, pooling)
        metric.update(seen)


def _read_within(waiting: Callable[[], AbstractContextManager[None]], stream: Iterable[Any]) -> Iterator[Any]:
    """The items of a stream, each waited for in a context."""
    iterator, end = iter(stream), object()
    while True:
        with waiting():
            item = next(iterator, end)
        if item is end:
            return
        yield item


def unlabelled(batch: Batch) -> Batch:
    """A batch as a teacher sees it in an evaluation: the answers are kept from it."""
    return batch.replace(labels=None)


def pool(batch: Batch, runtime: Runtime) -> Batch:
    """The logits, labels and index of all processes' shares of a batch; without inputs and features."""
    kept = slice(None) if batch.mask is None else batch.mask  # what only keeps a process busy counts nowhere

    def gather(part: Any) -> Any:
        return map_tensors(lambda tensor: runtime.processes.gather_rows(tensor[kept]), part)

    logits = runtime.processes.gather_rows(batch.student.logits[kept])
    pooled = Batch(None, gather(batch.labels), gather(batch.index), weights=gather(batch.weights), size=len(logits))
    pooled.student = Output(logits, logits, module=batch.student.module)
    if batch.has_teacher:
        taught = runtime.processes.gather_rows(batch.teacher.logits[kept])
        pooled.teacher = Output(taught, taught, module=batch.teacher.module)
    return pooled


def evaluate(fit: Fit) -> dict[str, float | None]:
    """One evaluation of a fit, with its hooks; a callable is asked itself."""
    context = EvaluateContext(fit.context, fit.position.step, fit.position.epoch, {})
    if fit.calls.evaluate_start is not None:
        fit.calls.evaluate_start(context)
    model = fit.models.student if fit.models.average is None else fit.models.average.module
    if fit.models.average is not None:
        fit.models.average.confirm(fit.models.student)
    fit.runtime.replicate_buffers(model, *fit.models.evolving)
    if callable(fit.evaluation):
        with random.preserved(), evaluation_mode(model), torch.no_grad():
            values = placed(_read(fit.evaluation(model)))
    else:
        assert fit.evaluation is not None
        values = measure(
            fit.evaluation,
            fit.metrics,
            models=fit.models,
            precision=fit.precision,
            runtime=fit.runtime,
            to_batch=fit.to_batch,
            model=model,
            pause=fit.leave_if_asked,
            waiting=fit.waiting,
        )
    values = fit.runtime.processes.share(values)[0]  # decisions follow: the same in every process
    context.metrics = values
    fit.latest = {**values, "step": float(fit.position.step)}
    fit.context.metrics = values
    for name in [name for name, value in values.items() if value is not None and not math.isfinite(value)]:
        fit.loggers.message(
            f"{name} is {values[name]} at step {fit.position.step}: it is never the best, and null in summary.json"
        )
    fit.best = fit.monitor.better(fit.best, values, step=fit.position.step, epoch=fit.position.epoch + 1)
    if fit.calls.evaluate_end is not None:
        fit.note(fit.calls.evaluate_end(context))
    return values


def _read(given: Any) -> dict[str, float | None]:
    """What an evaluation function returns, as numbers by name."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"the evaluation function returned {describe(given)}; expected a mapping of names to numbers, such as "
            '{"top1": 0.5}'
        )
    return as_numbers("", given)
