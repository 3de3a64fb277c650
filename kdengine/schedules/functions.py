"""Schedules that are pure functions of progress, so that they have no state to save."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

from kdengine.api import ConfigurationError, Progress, Schedule
from kdengine.schedules.numbers import finite


def ramp(fraction: float, begin: float, until: float) -> float:
    """Share of the way from ``begin`` to ``until``, 0 before and 1 after.

    >>> ramp(0.5, 0.25, 0.75)
    0.5
    """
    return min(1.0, max(0.0, (fraction - begin) / (until - begin)))


def check_window(begin: float, until: float) -> None:
    """Refuse shares of training that are not ``0 <= begin < until <= 1``."""
    if not 0.0 <= begin < until <= 1.0:
        raise ConfigurationError(
            f"expected 0 <= begin < until <= 1 (shares of training), got begin={begin}, until={until}"
        )


class Constant(Schedule):
    """The same value at every step.

    Args:
        value: the value.

    Example:
        >>> Constant(4.0).value(Progress(step=3, steps=10))
        4.0
    """

    def __init__(self, value: float) -> None:
        self.constant = finite("value", value)

    def value(self, progress: Progress) -> float:
        """The value."""
        return self.constant


class Linear(Schedule):
    """A straight line: ``start + (end - start) * x``, x running from 0 at ``begin`` to 1 at ``until``.

    Args:
        start: value up to ``begin``.
        end: value from ``until`` on.
        begin: share of training (0 to 1) at which the change begins.
        until: share of training (0 to 1) at which the change is complete.

    Example:
        >>> Linear(4.0, 1.0).value(Progress(step=5, steps=11))
        2.5
    """

    def __init__(self, start: float, end: float, begin: float = 0.0, until: float = 1.0) -> None:
        check_window(begin, until)
        self.start, self.end = finite("start", start), finite("end", end)
        self.begin, self.until = begin, until

    def value(self, progress: Progress) -> float:
        """The point on the line."""
        x = ramp(progress.fraction, self.begin, self.until)
        return (1.0 - x) * self.start + x * self.end


class Cosine(Schedule):
    """Half a cosine wave: ``end + (start - end) * (1 + cos(pi * x)) / 2``, x as for ``linear``.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.

    Args:
        start: value up to ``begin``.
        end: value from ``until`` on.
        begin: share of training (0 to 1) at which the change begins.
        until: share of training (0 to 1) at which the change is complete.

    Example:
        >>> Cosine(4.0, 1.0).value(Progress(step=5, steps=11))
        2.5
    """

    def __init__(self, start: float, end: float, begin: float = 0.0, until: float = 1.0) -> None:
        check_window(begin, until)
        self.start, self.end = finite("start", start), finite("end", end)
        self.begin, self.until = begin, until

    def value(self, progress: Progress) -> float:
        """The point on the wave."""
        x = 0.5 * (1.0 - math.cos(math.pi * ramp(progress.fraction, self.begin, self.until)))
        return (1.0 - x) * self.start + x * self.end


class WarmUp(Schedule):
    """A straight line from ``start`` to ``value``, then ``value``; or, with ``epochs``, a stair of so many steps.

    Source of the line: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.2 (gradual warm-up). The stair is
    that of the published code of ``dkd`` and ``reviewkd``: ``min(epoch / epochs, 1)`` of the way, ``epoch`` counted
    from 1, so that the first epoch is at ``1 / epochs`` and not at ``start``.

    Args:
        value: value after the warm-up.
        over: share of training (0 to 1) that the line takes, 0.1 when neither is given; 0 leaves it out.
        start: value at which the line begins.
        epochs: epochs of the stair, in the line's place.

    Example:
        >>> WarmUp(0.9, over=0.5).value(Progress(step=50, steps=101))
        0.9
        >>> [WarmUp(1.0, epochs=20).value(Progress(0, 1, epoch=epoch, epochs=240)) for epoch in (0, 9, 30)]
        [0.05, 0.5, 1.0]
    """

    def __init__(self, value: float, over: float | None = None, start: float = 0.0, epochs: int | None = None) -> None:
        if epochs is not None and over is not None:
            raise ConfigurationError(
                f"expected over (a share of training) or epochs (a stair of the published code), got over={over} and "
                f"epochs={epochs}"
            )
        if epochs is not None and (type(epochs) is not int or epochs < 1):
            raise ConfigurationError(f"expected epochs to be a whole number, at least 1, got {epochs!r}")
        over = 0.1 if over is None else over
        if not 0.0 <= over <= 1.0:
            raise ConfigurationError(f"expected over between 0 and 1 (a share of training), got {over}")
        self.end, self.start = finite("value", value), finite("start", start)
        self.over, self.epochs = over, epochs

    def value(self, progress: Progress) -> float:
        """The point on the line, or the height of the stair."""
        x = self._share(progress)
        return (1.0 - x) * self.start + x * self.end

    def _share(self, progress: Progress) -> float:
        if self.epochs is not None:
            return min((progress.epoch + 1) / self.epochs, 1.0)
        return ramp(progress.fraction, 0.0, self.over) if self.over else 1.0


class Step(Schedule):
    """A staircase: ``start * factor ** (epoch // every)``.

    Args:
        start: value of the first ``every`` epochs.
        factor: what the value is multiplied by at each stair.
        every: epochs between two stairs.

    Example:
        >>> Step(8.0, 0.5, every=10).value(Progress(step=0, steps=1, epoch=25, epochs=30))
        2.0
    """

    def __init__(self, start: float, factor: float, every: int) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigurationError(f"expected every to be a whole number of epochs, at least 1 epoch, got {every!r}")
        self.start, self.factor, self.every = finite("start", start), finite("factor", factor), every

    def value(self, progress: Progress) -> float:
        """The height of the current stair."""
        return float(self.start * self.factor ** (progress.epoch // self.every))


class Piecewise(Schedule):
    """Values at given shares of training, held or joined by straight lines.

    Before the first point its value holds, after the last point the last value.

    Args:
        points: pairs (share of training from 0 to 1, value), shares strictly rising.
        interpolation: ``"linear"`` joins the points; ``"constant"`` holds each value until the next point.

    Example:
        >>> Piecewise([(0.0, 1.0), (0.5, 3.0), (1.0, 0.0)]).value(Progress(step=25, steps=101))
        2.0
    """

    def __init__(
        self, points: Sequence[tuple[float, float]], interpolation: Literal["constant", "linear"] = "linear"
    ) -> None:
        if interpolation not in ("constant", "linear"):
            raise ConfigurationError(f"expected interpolation 'constant' or 'linear', got {interpolation!r}")
        self.shares = [float(share) for share, _ in points]
        self.values = [finite("a point's value", value) for _, value in points]
        rising = all(a < b for a, b in zip(self.shares, self.shares[1:], strict=False))
        if not self.shares or not rising or self.shares[0] < 0.0 or self.shares[-1] > 1.0:
            raise ConfigurationError(
                "expected points as pairs (share of training, value) with shares rising from 0 to 1, "
                f"for example [[0.0, 4.0], [0.5, 1.0]]; got {[list(point) for point in points]}"
            )
        self.interpolation = interpolation

    def value(self, progress: Progress) -> float:
        """The value of the current piece."""
        after = bisect_right(self.shares, progress.fraction)
        before = max(0, after - 1)
        if after in (0, len(self.shares)) or self.interpolation == "constant":
            return self.values[before]
        x = ramp(progress.fraction, self.shares[before], self.shares[after])
        return (1.0 - x) * self.values[before] + x * self.values[after]
