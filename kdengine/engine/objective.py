"""The objective: which items count, by what each term is divided, and the weighted sum that is differentiated.

This is the one place that reduces losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from kdengine.api import ConfigurationError, Loss, Progress, Schedule, Weight
from kdengine.api.batch import Batch
from kdengine.api.errors import nearest

Masks: TypeAlias = Sequence[Tensor | None]
"""One mask per term; None when every item counts."""


class Objective:
    """All losses of a fit, with their weights and schedules.

    Args:
        losses: loss modules by label.
        weights: factor of each label, a number or a schedule; 1 where absent.

    Attributes:
        names: full names of the terms, ``label`` or ``label.term``, in a fixed order.
    """

    def __init__(self, losses: Mapping[str, Loss], weights: Mapping[str, float | Schedule]) -> None:
        for label, loss in losses.items():
            if not isinstance(loss, Loss):
                raise ConfigurationError(
                    f"losses[{label!r}] is a {type(loss).__name__}, expected a kdengine.Loss; "
                    "wrap a plain criterion with kdengine.from_callable"
                )
        for label in weights:
            if label not in losses:
                raise ConfigurationError(f"weights names {label!r}, which is no loss; {nearest(label, losses)}")
        self.losses = dict(losses)
        self.modules = nn.ModuleDict(losses)
        self.terms = [(label, term) for label, loss in losses.items() for term in loss.terms]
        self.names = [label if term == "loss" else f"{label}.{term}" for label, term in self.terms]
        self.weights: dict[str, float] = {}
        self.schedules: dict[str, Schedule] = {}
        self._items = [(label, loss, len(loss.terms)) for label, loss in losses.items()]
        self.place(torch.device("cpu"), torch.float32)
        for label in losses:
            self._set_weight(label, weights.get(label, 1.0))
        self.has_schedules = bool(self.scheduled)

    def _set_weight(self, label: str, weight: float | Schedule) -> None:
        if isinstance(weight, Schedule):
            self.schedules[f"weights.{label}"] = weight
            weight = weight.value(Progress(step=0, steps=1))
        self.weights[label] = float(weight)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the losses' own parameters, and give masks the precision of the student's parameters."""
        self.modules.to(device)
        self.device = device
        self.dtype = torch.promote_types(dtype, torch.float32)

    def _spread(self, factor: Weight, mask: Tensor | None) -> Weight:
        """The factor for every item, zero where the mask is False."""
        return factor if mask is None else mask.to(self.device, self.dtype, non_blocking=True) * factor

    @property
    def scheduled(self) -> dict[str, Schedule]:
        """Every schedule of the objective by the name it is logged under."""
        inner = {f"{label}.{name}": s for label, loss, _ in self._items for name, s in loss.schedules.items()}
        return {**self.schedules, **inner}

    @property
    def term_weights(self) -> list[float]:
        """The current weight of each term, in the order of ``names``."""
        return [self.weights[label] for label, _ in self.terms]

    def advance(self, progress: Progress) -> None:
        """Set every scheduled scalar to its value for the step that is about to run."""
        for name, schedule in self.schedules.items():
            self.weights[name.removeprefix("weights.")] = schedule.value(progress)
        for _, loss, _ in self._items:
            for name, schedule in loss.schedules.items():
                loss.__dict__[name] = schedule.value(progress)

    def scalars(self) -> dict[str, float]:
        """Current values of the scheduled scalars."""
        values = {name: self.weights[name.removeprefix("weights.")] for name in self.schedules}
        for label, loss, _ in self._items:
            values.update({f"{label}.{name}": getattr(loss, name) for name in loss.schedules})
        return values

    def masks(self, batch: Batch) -> list[Tensor | None]:
        """Which items count for each term, from inputs and labels only."""
        masks: list[Tensor | None] = []
        for _, loss, size in self._items:
            valid = loss.valid(batch)
            if isinstance(valid, Mapping):
                masks.extend(_with(valid.get(term), batch.mask) for term in loss.terms)
            else:
                masks.extend([_with(valid, batch.mask)] * size)
        return masks

    def count(self, batch: Batch, masks: list[Tensor | None]) -> list[int]:
        """Valid items of each term; a mask that leaves nothing out is replaced by None, the cheap path."""
        counts = []
        for position, mask in enumerate(masks):
            if mask is None:
                counts.append(batch.size)
                continue
            valid = count_true(mask)
            counts.append(valid)
            if mask.ndim == 1 and valid == batch.size:
                masks[position] = None
        return counts

    def evaluate(
        self, batch: Batch, masks: Masks, counts: Sequence[int], divisors: Sequence[int], scale: Weight = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """The scalar to differentiate for one micro-batch, and each term's detached share of it.

        Args:
            batch: the micro-batch with outputs.
            masks: its masks, one per term.
            counts: its valid items, one per term.
            divisors: D of each term: valid items of the whole optimizer step.
            scale: loss scale of mixed precision.
        """
        total: Tensor | None = None
        shares: list[Tensor] = []
        position = 0
        for label, loss, size in self._items:
            weight = self.weights[label]
            weights: dict[str, Weight] = {}
            for at in range(position, position + size):
                factor = weight / divisors[at] if divisors[at] else 0.0
                if loss.scope == "batch":
                    weights[loss.terms[at - position]] = factor * counts[at] * scale
                else:
                    weights[loss.terms[at - position]] = self._spread(factor * scale, masks[at])
            part, sums = loss.weighted_sum(batch, weights)
            total = part if total is None else total + part
            shares.extend(sums[term] for term in loss.terms)
            position += size
        if total is None:
            raise ConfigurationError("there is no loss to train on: give Engine(losses=...) at least one")
        return total, shares


def count_true(mask: Tensor) -> int:
    """Number of True elements; on the host by NumPy, which counts a short mask in a fraction of the time."""
    return int(np.count_nonzero(mask.numpy())) if mask.device.type == "cpu" else int(mask.sum())


def _with(valid: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Both masks at once; ``mask`` is per item."""
    if valid is None or mask is None:
        return mask if valid is None else valid
    return valid & mask.view(-1, *[1] * (valid.ndim - 1))
