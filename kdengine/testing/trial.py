"""What one check of a loss tries and measures, and the promise that it is about."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from kdengine.testing.case import Case
from kdengine.testing.report import fail, require, require_finite

SMALL = 1e-3
"""A tensor below this part of the largest beside it is measured against that, as it may be a sum that cancels."""
ROUNDING = 32 * torch.finfo(torch.float64).eps
"""What rounding may leave of terms that are about 1, however small their sum is."""


class DoesNotApply(Exception):  # noqa: N818
    """The promise is not this loss's to keep; the message says why."""


class Trial:
    """Notes what a check tries, keeps the worst that it measures, and fails in the kit's words.

    Args:
        name: the loss's name, for messages.

    Attributes:
        attempts: what was tried, in words.
        deviation: the worst measured so far in relation to what is allowed; None while nothing was measured.
        allowed: what is allowed there.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.attempts: list[str] = []
        self.deviation: float | None = None
        self.allowed: float | None = None

    def tries(self, what: str) -> None:
        """Note what is about to be tried."""
        self.attempts.append(what)

    def skip(self, why: str) -> NoReturn:
        """Leave: the promise is not this loss's to keep."""
        raise DoesNotApply(why)

    def fail(self, message: str, cause: BaseException | None = None) -> NoReturn:
        """Leave: the promise is broken."""
        fail(self.name, message, cause)

    def require(self, condition: bool, message: str) -> None:
        """Fail unless a condition holds."""
        require(condition, self.name, message)

    def measure(self, deviation: float, allowed: float) -> bool:
        """Keep the worst of what is measured; whether this one is within what is allowed."""
        if self.deviation is None or self.allowed is None:
            worse = True
        else:
            worse = _relative(deviation, allowed) > _relative(self.deviation, self.allowed)
        if worse:
            self.deviation, self.allowed = deviation, allowed
        return deviation <= allowed

    def close(self, what: str, got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
        """Fail when two lists of tensors differ by more than a tolerance relative to the size of what is expected.

        So 0 in the place of a small value is seen. Only rounding is allowed for: a difference in the last digits of 1,
        and of the largest tensor in the list. With a tolerance of 0 not even that.
        """
        sizes = [float(other.detach().abs().max()) if other.numel() else 0.0 for other in expected]
        least = max(SMALL * max(sizes, default=0.0), ROUNDING / tolerance) if tolerance else 1.0
        for one, other, own in zip(got, expected, sizes, strict=True):
            if one.shape != other.shape:
                self.fail(f"{what} has shape {tuple(one.shape)}, expected {tuple(other.shape)}")
            if not one.numel():
                continue
            worst = float((one.detach() - other.detach()).abs().max())
            size = max(own, least)
            if not self.measure(worst / size, tolerance):
                self.fail(f"{what} differs by {worst:.3g}; the tolerance is {tolerance * size:.3g}")

    def finite(self, what: str, values: Sequence[Tensor]) -> None:
        """Fail on NaN or infinity."""
        require_finite(self.name, what, values)


def _relative(deviation: float, allowed: float) -> float:
    if math.isnan(deviation):
        return math.inf
    if allowed == 0:
        return math.inf if deviation else 0.0
    return deviation / allowed


@dataclass(frozen=True)
class Check:
    """A promise, and how it is put to the test.

    Attributes:
        name: in two or three words.
        promise: what a loss that passes keeps, as a sentence without its full stop.
        run: tries it on a case; it fails or skips by the trial's methods.
    """

    name: str
    promise: str
    run: Callable[[Case, Trial], None]


def promises(name: str, promise: str) -> Callable[[Callable[[Case, Trial], None]], Check]:
    """Make a function the check of a promise."""

    def make(run: Callable[[Case, Trial], None]) -> Check:
        return Check(name, promise, run)

    return make
