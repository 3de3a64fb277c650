"""The objective of one batch, for a loop that is not the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError
from kdengine.engine.assembly import attached
from kdengine.engine.batching import place
from kdengine.engine.fit import Models
from kdengine.engine.forward import run_student, run_teacher
from kdengine.engine.guard import FrozenGuard, refusing_student
from kdengine.engine.notices import Notices
from kdengine.engine.objective import Objective
from kdengine.engine.output_checks import check_outputs
from kdengine.engine.precision import Precision


class ForeignSteps:
    """Computes the objective of one batch, with the checks that a fit makes in its first step.

    Args:
        notices: of the engine.

    Attributes:
        begun: whether it has been called.
    """

    def __init__(self, notices: Notices) -> None:
        self.notices = notices
        self.begun = False
        self._watched: FrozenGuard | None = None
        self._checked: tuple[Objective, set[tuple[object, ...]]] | None = None

    def objective(
        self,
        models: Models,
        objective: Objective,
        precision: Precision,
        batch: Batch,
        window: Sequence[Batch],
        *,
        student: nn.Module | None,
        device: torch.device,
    ) -> Tensor:
        """The weighted sum of all terms, with a graph.

        Args:
            models: student and teacher.
            objective: the losses.
            precision: how the models compute.
            batch: on the host.
            window: the batches of the optimizer step, the first among them; none where it is the whole step.
            student: run in the student's place, or None.
            device: where the models are.
        """
        self.begun = True
        objective.end_step()
        masks = objective.masks(batch)
        counts = objective.count(batch, masks)
        divisors = count_all(objective, window) if window else counts
        if any(all_ < own for all_, own in zip(divisors, counts, strict=True)):
            raise ConfigurationError(
                "window holds fewer items than the batch itself; expected all batches of the optimizer step that the "
                "batch is one of: engine.objective(batch, window=batches)"
            )
        batch = place(batch.without_outputs(), device)
        self._run(models, precision, batch, student)
        self._check(models, objective, batch)
        total, _ = precision.run_loss(objective.evaluate, batch, masks, counts, divisors)
        return total

    def _run(self, models: Models, precision: Precision, batch: Batch, student: nn.Module | None) -> None:
        """Teacher, where losses need it, and student; the teacher is watched as in a fit."""
        guard = models.guard
        if guard is not None:
            guard.check()
            if guard is self._watched:  # the first step is over: nothing in it may have written to the teacher
                guard.confirm_once()
        with attached(models):
            if models.teach:
                first = models.evolving_source is None and (guard is None or not guard.tried)
                with refusing_student(models.student) if first else nullcontext():
                    batch.teacher = run_teacher(models, precision, batch)
            batch.student = run_student(models, precision, batch, model=student)
        if models.align is not None and models.teach:
            models.align(batch)
        if guard is not None and not guard.tried:
            guard.try_forward()
        self._watched = guard

    def _check(self, models: Models, objective: Objective, batch: Batch) -> None:
        """Check the first batch of each form: one more number of classes, another kind of labels."""
        if self._checked is None or self._checked[0] is not objective:
            self._checked = objective, set()
        if (form := form_of(batch)) not in self._checked[1]:
            check_outputs(objective, models, batch, self.notices)
            self._checked[1].add(form)


def count_all(objective: Objective, window: Sequence[Batch]) -> list[float]:
    """D of each term: its valid items in all batches of an optimizer step."""
    counts = [objective.count(batch, objective.masks(batch)) for batch in window]
    return [sum(column) for column in zip(*counts, strict=True)]


def form_of(batch: Batch) -> tuple[object, ...]:
    """What checks of a batch depend on, without how many items and positions it has."""
    tensors = [output._logits for output in (batch.student, *([batch.teacher] if batch.has_teacher else []))]
    outputs = [None if one is None else (one.ndim, one.shape[-1] if one.ndim else 0) for one in tensors]
    labels = batch.labels
    counted = [one is None or one.shape[:1] == (batch.size,) for one in tensors]
    return (*outputs, *counted, (labels.ndim, labels.dtype) if isinstance(labels, Tensor) else type(labels))
