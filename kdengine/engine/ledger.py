"""The ledger: what each term was worth, read from the device without making it wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdengine._untrusted import shown
from kdengine.engine.runtime import Runtime


class StepReport(NamedTuple):
    """What one optimizer step was worth, on the host.

    Attributes:
        step: the optimizer step.
        loss: the objective: the sum of the weighted terms.
        terms: each term's unweighted mean; NaN for a term of weight zero, or for which no item counts.
        overflow: whether a gradient was not finite.
        scale: the loss scale of the step.
    """

    step: int
    loss: float
    terms: list[float]
    overflow: bool = False
    scale: float = 1.0


class Flag:
    """A number on the device that a kernel raises above 0; on the CPU the host sees it in place.

    Attributes:
        tensor: the number, 0-dim float32.
    """

    def __init__(self, device: torch.device) -> None:
        self.tensor = torch.zeros((), device=device)
        self._host = self.tensor.numpy() if device.type == "cpu" else None

    def take(self) -> bool:
        """Whether it is raised; lowers it. An accelerator makes the host wait."""
        raised = bool(self.tensor if self._host is None else self._host)
        if raised:
            self.tensor.zero_()
        return raised


class Ledger:
    """Collects the detached shares of one step's micro-batches and reads them back.

    On the CPU a step's report is there at once. On an accelerator the values are copied asynchronously and the
    report comes one step late, so that the host never waits for the step in flight. Several processes sum their
    shares first.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.device = runtime.device
        self.late = self.device.type == "cuda"
        self._shares: list[Tensor] = []
        self._weights: Sequence[float] = ()
        self._pending: tuple[int, Sequence[float], Tensor, torch.cuda.Event] | None = None

    def add(self, shares: list[Tensor], weights: Sequence[float]) -> None:
        """Take in the shares of one micro-batch; ``weights`` are the terms' current weights."""
        self._weights = weights
        self._shares = shares if not self._shares else [a + b for a, b in zip(self._shares, shares, strict=True)]

    def drop(self) -> None:
        """Forget the shares of a step that does not end."""
        self._shares = []

    def close(self, step: int, scale: Tensor | float, found: Flag) -> StepReport | None:
        """End a step: return the report that has become readable, if any.

        Args:
            step: the step that ends.
            scale: the loss scale that its shares carry.
            found: raised when a gradient was not finite; on an accelerator it is raised here for a loss, too.
        """
        shares, self._shares = self._shares, []
        if not self.late:
            seen = [share.item() for share in shares]
            if self.runtime.several:
                seen = self.runtime.sum_values(torch.tensor(seen, dtype=torch.float64)).tolist()
            return _report(step, self._weights, seen, float(scale), found.take())
        previous = self.flush()
        scale = torch.as_tensor(scale, device=self.device)
        summed = self.runtime.sum_values(torch.stack([share.float() for share in shares]))
        found.tensor.add_(summed.isfinite().all().logical_not())  # a loss may be infinite where no gradient is
        values = torch.cat([summed, torch.stack([scale, found.tensor])])
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending = (step, self._weights, host, event)
        return previous

    def flush(self) -> StepReport | None:
        """The report of the last step, waiting for it if need be."""
        if self._pending is None:
            return None
        (step, weights, host, event), self._pending = self._pending, None
        event.synchronize()
        *shares, scale, found = host.tolist()
        return _report(step, weights, shares, scale, found > 0)


def _report(step: int, weights: Sequence[float], shares: list[float], scale: float, overflow: bool) -> StepReport:
    loss, terms = 0.0, []
    for share, weight in zip(shares, weights, strict=True):
        loss += share / scale
        terms.append(share / scale / weight if weight else math.nan)
    return StepReport(step, loss, terms, overflow, scale)


class Means:
    """Means of step reports over a stretch of training; terms of weight zero are left out of their own mean."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.clear()

    def clear(self) -> None:
        """Start a new stretch."""
        self.steps = self._idle = 0
        self._loss = 0.0
        self._sums = [0.0] * len(self.names)
        self._counts = [0] * len(self.names)

    def add(self, report: StepReport) -> None:
        """Take in one step; one whose loss is not finite, or in which no item counts, is left out."""
        if not math.isfinite(report.loss):
            return
        if report.terms and all(map(math.isnan, report.terms)):
            self._idle += 1
            return
        self.steps += 1
        self._loss += report.loss
        for at, value in enumerate(report.terms):
            if not math.isnan(value):
                self._sums[at] += value
                self._counts[at] += 1

    def values(self) -> dict[str, float]:
        """``loss`` and each term; a term that never counted is absent."""
        if not self.steps:
            return {"loss": 0.0} if self._idle else {}
        terms = {
            name: total / count
            for name, total, count in zip(self.names, self._sums, self._counts, strict=True)
            if count
        }
        return {"loss": self._loss / self.steps, **terms}

    def absent(self, weights: Sequence[float]) -> list[str]:
        """The terms that no step had items for, but of those of weight 0."""
        found = zip(self.names, self._counts, weights, strict=True)
        return [name for name, count, weight in found if not count and weight]

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        sums = {"loss": self._loss, "sums": list(self._sums), "counts": list(self._counts)}
        return {"steps": self.steps, "idle": self._idle, **sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from sums.

        Raises:
            ValueError: they are not those of these terms.
        """
        sums, counts = list(state["sums"]), list(state["counts"])
        numbers = [state["loss"], *sums]
        idle = state.get("idle", 0)
        whole = [state["steps"], idle, *counts]
        if not all(isinstance(number, float | int) for number in numbers) or not all(type(n) is int for n in whole):
            raise ValueError(f"expected numbers in the means of the losses, got {shown(state)}")
        if not len(sums) == len(counts) == len(self.names):
            raise ValueError(f"expected the means of {len(self.names)} terms, got {shown(state)}")
        self.steps, self._idle, self._loss = state["steps"], idle, state["loss"]
        self._sums, self._counts = sums, counts
