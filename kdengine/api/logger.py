"""The contract of a logger."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a logger may know of the fit that it records.

    Attributes:
        name: name of the fit (``student``, ``student alone``, ``teacher``).
        out: the run directory, or None when nothing is written.
        steps: optimizer steps of the whole fit.
        epochs: epochs of the whole fit.
        step: steps already done when the fit starts (more than 0 on resume).
    """

    name: str
    out: Path | None
    steps: int
    epochs: int
    step: int = 0


class Logger(ABC):
    """Receives records; never changes training. A logger that fails is reported once and then left alone.

    Override what is of interest. ``kind`` is ``"train"`` (loss terms, weights, schedules, rate), ``"evaluate"``
    (metrics), or for a logger that asks for it ``"step"``.

    Attributes:
        steps: whether it also takes a record of every optimizer step: ``batch`` (a digest of the items), ``loss``,
            each term, ``lr``.
    """

    steps: ClassVar[bool] = False

    def start(self, run: RunInfo) -> None:
        """A fit begins, or goes on after a resume."""

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """One record of numbers (and short strings) at an optimizer step."""

    def message(self, text: str) -> None:
        """One line for a person: a note or warning of the engine."""

    def finish(self, status: str) -> None:
        """The fit ended: ``"finished"``, ``"stopped"`` or ``"failed"``."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs so that records after the checkpoint are cut off."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to the state of the checkpoint."""
