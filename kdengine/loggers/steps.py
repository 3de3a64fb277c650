"""One line per optimizer step: what two runs are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from kdengine.loggers.jsonl import Jsonl


class Steps(Jsonl):
    """Appends every optimizer step to ``steps.jsonl`` in the run directory, about a hundred bytes each.

    A line is ``{"step": 1, "batch": "5e0c4f0d9a1b", "loss": 2.31, "kd": 2.04, "lr": 0.1}``: a digest of the items of
    the whole step, and numbers to the last digit, so that ``kdengine compare`` finds where two runs part.
    """

    name: ClassVar[str] = "steps.jsonl"
    steps: ClassVar[bool] = True

    def log(self, record: Mapping[str, Any], *, step: int, kind: str) -> None:
        """Append the record of a step; others are of no interest here."""
        if kind == "step":
            self._append({"step": step}, record)
