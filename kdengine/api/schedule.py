"""Schedules: scalars of the objective that change while training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from kdengine.api.given import Given


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands when a schedule is asked for its value.

    Attributes:
        step: optimizer step that is about to run, from 0.
        steps: optimizer steps of the whole fit.
        epoch: current epoch, from 0.
        epochs: epochs of the whole fit.
        metrics: the latest evaluation's metrics; empty before the first.
    """

    step: int
    steps: int
    epoch: int = 0
    epochs: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Share of training that is done: 0 at the first step, 1 at the last.

        >>> Progress(step=9, steps=10).fraction
        1.0
        """
        return min(1.0, self.step / max(1, self.steps - 1))


class Schedule(Given, ABC):
    """A scalar as a function of :class:`Progress`.

    Subclasses take plain numbers in their constructor (a recipe writes them in a table) and implement
    :meth:`value`. One that remembers something between calls overrides the two state methods.

    Attributes:
        follows: name of the evaluation's metric without which it never changes; None for one that needs none.
    """

    follows: str | None = None

    @abstractmethod
    def value(self, progress: Progress) -> float:
        """The scalar's value for the step that is about to run."""

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`value` depends on besides its argument."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""


class ScalarMarker:
    """Marks a constructor argument that takes a number or a schedule."""


Scalar: TypeAlias = Annotated[Any, ScalarMarker]
"""Type of a loss's constructor argument that takes a number or a :class:`Schedule`.

Assign it to an attribute of the loss and read that: it is a plain float, up to date at every step.
"""
