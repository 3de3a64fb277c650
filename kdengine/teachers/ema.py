"""A teacher that is the average of the student's own past."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdengine._untrusted import shown
from kdengine.api import Batch, ConfigurationError, TeacherSource
from kdengine.api.copies import copied, follow_shapes
from kdengine.api.models import call_model


class EMA(TeacherSource):
    """The exponential moving average of the student: self-distillation from a *mean teacher*.

    After the n-th optimizer step, n = 1, 2, ..., with the student's weights ``theta_n`` and ``theta'_0 = theta_0``::

        theta'_n = a_n theta'_{n-1} + (1 - a_n) theta_n,    a_n = min(1 - 1 / (n + 1), decay)

    (Tarvainen and Valpola 2017, section 2.) The warm-up of the decay is that of the code they published: the plain mean
    of all weights so far, until the exponential average forgets faster. Without it the first steps are taught by
    weights that have learnt nothing.

    Buffers of floating type (running statistics) are averaged like weights, others are copied. The average runs in
    evaluation mode; in the paper it has noise of its own, from dropout and augmentation.

    References:
        Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2; arXiv:1703.01780

    Args:
        decay: the largest ``a_n``.
        warmup: whether ``a_n`` rises from 1/2 to the decay, as published; else it is the decay from the start.

    Raises:
        ConfigurationError: the decay is not between 0 and 1.

    Example:
        >>> source, student = EMA(decay=0.9), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(student.weight, 1.0)
        >>> source.prepare(student)
        >>> _ = nn.init.constant_(student.weight, 3.0)
        >>> source.update(student)
        >>> source.module.weight.item()
        2.0
    """

    evolving = True
    wraps = "nothing"

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0.0 < decay < 1.0:
            raise ConfigurationError(f"ema: decay is the share of the average that stays, between 0 and 1, got {decay}")
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.module: nn.Module | None = None

    def modules(self) -> list[nn.Module]:
        """The average; none before a fit."""
        return [] if self.module is None else [self.module]

    def prepare(self, student: nn.Module) -> None:
        """Begin with the student's weights."""
        self.module = copied(student).eval().requires_grad_(False)
        self.updates = 0

    def place(self, device: torch.device) -> None:
        """Move the average."""
        self._average.to(device)

    @torch.no_grad()
    def forward(self, batch: Batch) -> Any:
        """What the average gives."""
        return call_model(self._average, batch.inputs)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move the average towards the student."""
        self.updates += 1
        decay = min(1.0 - 1.0 / (self.updates + 1), self.decay) if self.warmup else self.decay
        average = self._average
        follow_shapes(average, student)
        _move(average.parameters(), student.parameters(), 1.0 - decay)
        _move(average.buffers(), student.buffers(), 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """The average, and how often it was moved."""
        return {"module": dict(self._average.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an average.

        Raises:
            ValueError: the number of updates is none.
            RuntimeError: it is the average of another student.
        """
        updates = state["updates"]
        if type(updates) is not int or updates < 0:
            raise ValueError(f"expected the number of updates of the average, got {shown(updates)}")
        self._average.load_state_dict(state["module"])
        self.updates = updates

    @property
    def _average(self) -> nn.Module:
        if self.module is None:
            raise ConfigurationError("ema: there is no average before a fit has begun with a student")
        return self.module


def _move(averages: Iterable[Tensor], values: Iterable[Tensor], share: float) -> None:
    """Go a share of the way from averages to values; what cannot be averaged is copied."""
    pairs = [(average, value.detach()) for average, value in zip(averages, values, strict=True)]
    floating = [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
    if floating:
        torch._foreach_lerp_([average for average, _ in floating], [value for _, value in floating], share)
    for average, value in pairs:
        if not (average.is_floating_point() or average.is_complex()):
            average.copy_(value)
