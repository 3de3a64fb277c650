"""Numbers of a summary: one value, or a mean with its spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True)
class Value:
    """A finite number.

    Attributes:
        mean: the value, or its mean over seeds.
        sd: sample standard deviation over seeds; None when there is one value only.
        n: number of seeds.
    """

    mean: float
    sd: float | None = None
    n: int = 1


def number(raw: Any) -> float | None:
    """A finite number, or None for anything else: null, ``"NaN"``, text, infinity.

    >>> number(0.5), number("NaN"), number(None), number(True)
    (0.5, None, None, None)
    """
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    try:
        value = float(raw)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def integer(raw: Any) -> int | None:
    """A whole number, or None."""
    value = number(raw)
    return None if value is None else int(value)


def value(raw: Any) -> Value | None:
    """Read ``0.5`` or ``{"mean": 0.5, "sd": 0.1, "n": 3}``; None when there is no number.

    >>> value({"mean": 0.5, "sd": 0.1, "n": 3})
    Value(mean=0.5, sd=0.1, n=3)
    >>> value(None) is None
    True
    """
    if not isinstance(raw, Mapping):
        single = number(raw)
        return None if single is None else Value(single)
    mean, count = number(raw.get("mean")), integer(raw.get("n")) or 1
    return None if mean is None else Value(mean, number(raw.get("sd")) if count > 1 else None, count)


def values(raw: Any) -> dict[str, Value]:
    """Read a table of numbers; what is no number is left out."""
    if not isinstance(raw, Mapping):
        return {}
    read = {str(name): value(item) for name, item in raw.items()}
    return {name: item for name, item in read.items() if item is not None}


def spread(numbers: Sequence[float]) -> Value:
    """Mean and sample standard deviation of at least one number.

    >>> spread([1.0, 3.0]).mean
    2.0
    """
    return Value(fmean(numbers), stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def pooled(*parts: Value) -> float | None:
    """Pooled standard deviation ``sqrt(sum (n - 1) sd^2 / sum (n - 1))``; None without any spread.

    >>> pooled(Value(0.0, 3.0, 2), Value(0.0, 4.0, 2))
    3.5355339059327378
    """
    known = [(part.n - 1, part.sd) for part in parts if part.sd is not None]
    freedom = sum(weight for weight, _ in known)
    return math.sqrt(sum(weight * sd * sd for weight, sd in known) / freedom) if freedom else None
