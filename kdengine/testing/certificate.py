"""What was tried on a loss, what held, and what did not and by how much."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Outcome: TypeAlias = Literal["held", "failed", "does not apply"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one promise.

    Attributes:
        check: the check's name.
        promise: what was to be shown, in words.
        tried: what was tried.
        outcome: ``"held"``, ``"failed"`` or ``"does not apply"``.
        deviation: the worst that was measured in relation to the tolerance; None where nothing is measured.
        tolerance: what is allowed of it; 0 where two results must be equal bit for bit.
        message: what failed, or why it does not apply.
    """

    check: str
    promise: str
    tried: str
    outcome: Outcome
    deviation: float | None = None
    tolerance: float | None = None
    message: str = ""

    def facts(self) -> dict[str, Any]:
        """The finding for JSON; a number that is not finite is None."""
        return {
            "check": self.check,
            "promise": self.promise,
            "tried": self.tried,
            "outcome": self.outcome,
            "deviation": _finite(self.deviation),
            "tolerance": _finite(self.tolerance),
            "message": self.message,
        }

    def text(self) -> str:
        """The finding in two or three lines."""
        mark = {"held": "held", "failed": "FAILED", "does not apply": "-"}[self.outcome]
        lines = [f"{mark:<7} {self.check}: {self.promise}"]
        if self.tried:
            lines.append(f"tried: {self.tried}")
        if self.outcome == "held" and self.deviation is not None and self.tolerance is not None:
            lines.append(_measured(self.deviation, self.tolerance))
        if self.outcome == "does not apply":
            lines.append(f"does not apply: {self.message}")
        if self.outcome == "failed":
            lines.append(self.message)
        return "\n        ".join(line for text in lines for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class Certificate:
    """The findings of every check on one loss.

    Attributes:
        loss: the loss's name.
        arguments: with which it was made.
        torch: the version of torch.
        rows: a finding for each check, in order.

    Example:
        >>> from kdengine.losses import LogitMSE
        >>> from kdengine.testing import certify_loss
        >>> certificate = certify_loss(LogitMSE, center=True)
        >>> certificate.held, certificate.rows[3].check
        (True, 'weighted sum')
    """

    loss: str
    arguments: Mapping[str, Any]
    torch: str
    rows: tuple[Finding, ...] = field(repr=False)

    @property
    def held(self) -> bool:
        """Whether no promise was broken."""
        return not self.failed

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The promises that were broken."""
        return tuple(row for row in self.rows if row.outcome == "failed")

    @property
    def title(self) -> str:
        """The loss and its arguments as a call."""
        return f"{self.loss}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    def facts(self) -> dict[str, Any]:
        """The certificate for JSON; an argument that JSON cannot say is given by its ``repr``."""
        return {
            "loss": self.loss,
            "arguments": {name: _plain(value) for name, value in self.arguments.items()},
            "torch": self.torch,
            "held": self.held,
            "findings": [row.facts() for row in self.rows],
        }

    def summary(self) -> str:
        """One line: how many promises held, and the names of those that did not."""
        held = sum(row.outcome == "held" for row in self.rows)
        beside = len(self.rows) - held - len(self.failed)
        told = f"{held} promises held, {len(self.failed)} failed, {beside} do not apply"
        names = ", ".join(row.check for row in self.failed)
        return f"{told}: {names}" if names else told

    def text(self) -> str:
        """The whole certificate, to be read."""
        head = f"Certificate of {self.title}\n{self.summary()}; random batches on the CPU, torch {self.torch}"
        return "\n".join([head, "", *(row.text() for row in self.rows)])


def _measured(deviation: float, tolerance: float) -> str:
    if tolerance == 0:
        return "equal bit for bit"
    return f"worst deviation {deviation:.2g} of {tolerance:.2g} allowed"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value
