"""Where a value that is not finite came from: which process, which items, and how far back it can be seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdengine.api import Batch
from kdengine.api.structure import tensors
from kdengine.engine import random
from kdengine.engine.batching import place
from kdengine.engine.fit import Fit
from kdengine.engine.forward import run_pair
from kdengine.engine.modes import evaluation_mode
from kdengine.engine.shards import local
from kdengine.engine.weights import counting

SHOWN = 8
"""Most items and parameters that are named."""


def diagnose(fit: Fit, window: Sequence[Batch], names: Sequence[str]) -> str:
    """What is not finite in a step's batches, in every process; every process must ask.

    Args:
        fit: the fit, with the weights of before the step.
        window: the step's micro-batches; models run again, without training mode, where outputs were let go.
        names: the terms that are not finite; none when it is the gradient alone.
    """
    found = [line for batch in window for line in _of_batch(fit, batch, names)]
    if not names:
        found += _of_gradients(fit)
    told = [
        f"{f'process {rank}: ' if fit.runtime.several else ''}{'; '.join(dict.fromkeys(lines))}"
        for rank, lines in enumerate(fit.runtime.processes.share(found))
        if lines
    ]
    return "; ".join(told)


def origin(fit: Fit, name: str) -> str:
    """A term's name with the class it comes from.

    A recipe's term says where it came from by its module: that of the plugin.
    """
    loss = type(fit.objective.losses[name.split(".")[0]])
    return f"{name} ({loss.__module__}.{loss.__qualname__})"


@torch.no_grad()
def _of_batch(fit: Fit, host_batch: Batch, names: Sequence[str]) -> Iterator[str]:
    batch = host_batch
    if batch._student is None:
        batch = place(host_batch, fit.runtime.device)
        with evaluation_mode(*fit.models.moving), random.preserved():
            run_pair(fit.models, fit.precision, batch)
    suspects: dict[str, Any] = {"inputs": batch.inputs, "labels": batch.labels}
    outputs = {**({"teacher": batch.teacher} if batch.has_teacher else {}), "student": batch.student}
    for who, output in outputs.items():
        if (logits := output._logits) is not None:  # heads alone have none in common
            suspects[f"the {who}'s logits"] = logits
    if fit.settings.nonfinite == "raise":  # a loss that is asked again may change its state; here training ends
        suspects.update(_terms(fit, batch, names))
    for what, value in suspects.items():
        rows = [bad for tensor in tensors(value) for bad in _bad_rows(tensor, batch)]
        if rows:
            yield f"{what} of {_items(batch, sorted(set(rows)))}"


def _terms(fit: Fit, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """Values per item of the losses that reduce by item."""
    values = {}
    for label in dict.fromkeys(name.split(".")[0] for name in names):
        loss = fit.objective.losses[label]
        if loss.scope == "item":
            given = fit.precision.run_loss(loss.per_item, fit.objective.view(label, batch))
            terms = {loss.terms[0]: given} if isinstance(given, Tensor) else given
            values.update({f"{label}" if term == "loss" else f"{label}.{term}": v for term, v in terms.items()})
    return values


def _bad_rows(tensor: Tensor, batch: Batch) -> list[int]:
    if not tensor.is_floating_point() or tensor.shape[:1] != (batch.size,):
        return []
    bad = ~torch.isfinite(tensor).reshape(batch.size, -1).all(dim=1)
    if (alive := counting(batch)) is not None:
        bad &= alive.to(bad.device)
    return [int(row) for row in bad.nonzero().flatten()]


def _items(batch: Batch, rows: Sequence[int]) -> str:
    """Rows by their place in the data set, or in the batch where the loader gives none."""
    known = batch.index is not None
    places = [int(batch.index[row]) if batch.index is not None else row for row in rows]
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return f"items {', '.join(map(str, places[:SHOWN]))}{more} of the {'data set' if known else 'micro-batch'}"


def _of_gradients(fit: Fit) -> list[str]:
    """The parameters whose gradients are not finite, where they can still be seen."""
    named = [*fit.models.student.named_parameters(), *fit.objective.modules.named_parameters(prefix="losses")]
    named += [item for module in fit.models.learning for item in module.named_parameters(prefix="teacher")]
    bad = [n for n, p in named if p.grad is not None and not torch.isfinite(local(p.grad)).all()]
    more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return [f"the gradient of {', '.join(bad[:SHOWN])}{more}"] if bad else []
