"""Curves from metric records: which keys are terms, which are schedules, and means over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdengine.cli.report.values import number, spread

SHARE = "gradient_share."
_BOOKKEEPING = frozenset({"kind", "step", "epoch", "loss", "lr", "items_per_second"})
_MOST_POINTS = 160

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """Values over optimizer steps.

    Attributes:
        steps: the steps, ascending; at least one.
        means: the value at each step, or its mean over seeds.
        low: mean minus one standard deviation over seeds; equal to the mean for one seed.
        high: mean plus one standard deviation.
    """

    steps: list[float]
    means: list[float]
    low: list[float]
    high: list[float]

    @property
    def last(self) -> float:
        """The value at the last step."""
        return self.means[-1]

    @property
    def has_band(self) -> bool:
        """Whether several seeds spread at any step."""
        return any(low < high for low, high in zip(self.low, self.high, strict=True))

    @property
    def varies(self) -> bool:
        """Whether the value changes by more than rounding."""
        return max(self.means) - min(self.means) > 1e-6 * max(abs(mean) for mean in self.means)


@dataclass(frozen=True)
class Keys:
    """The numeric keys of a run's records, by what they are.

    Attributes:
        terms: loss terms, in the order of the records.
        scalars: scheduled scalars of the objective.
        metrics: what the evaluations measured.
        shares: terms whose share of the gradient was measured.
    """

    terms: list[str]
    scalars: list[str]
    metrics: list[str]
    shares: list[str]


def classify(records: Iterable[Record], arguments: Mapping[str, Iterable[str]]) -> Keys:
    """Tell loss terms from schedules.

    The measured gradient shares name the terms. Without them a key is a schedule if it is a weight, an argument of a
    loss in the recipe, or belongs to a loss that reports one term under its own label.

    Args:
        records: training and evaluation records.
        arguments: names of each loss's arguments, by the loss's label, from the resolved recipe.
    """
    trained, evaluated = _keys(records, "train"), _keys(records, "evaluate")
    shares = [key.removeprefix(SHARE) for key in evaluated if key.startswith(SHARE)]

    def is_term(name: str) -> bool:
        if shares:
            return name in shares
        label, _, argument = name.rpartition(".")
        return not label or not (label == "weights" or label in trained or argument in arguments.get(label, ()))

    return Keys(
        terms=[name for name in trained if is_term(name)],
        scalars=[name for name in trained if not is_term(name)],
        metrics=[key for key in evaluated if not key.startswith(SHARE)],
        shares=shares,
    )


def curve(seeds: Sequence[Sequence[Record]], kind: str, key: str) -> Curve | None:
    """One key's values over steps, averaged over seeds; None without any.

    Args:
        seeds: the records of each seed.
        kind: ``train`` or ``evaluate``.
        key: the key.
    """
    at: dict[float, list[float]] = {}
    for records in seeds:
        found = {}
        for record in records:
            step, value = number(record.get("step")), number(record.get(key))
            if record.get("kind") == kind and step is not None and value is not None:
                found[step] = value
        for step, value in found.items():
            at.setdefault(step, []).append(value)
    most = max((len(values) for values in at.values()), default=0)
    # a step that some seeds did not log would make the mean jump
    steps = _thinned(sorted(step for step, values in at.items() if len(values) == most))
    if not steps:
        return None
    points = [spread(at[step]) for step in steps]
    return Curve(
        steps,
        [point.mean for point in points],
        [point.mean - (point.sd or 0.0) for point in points],
        [point.mean + (point.sd or 0.0) for point in points],
    )


def mean_shares(seeds: Sequence[Sequence[Record]], terms: Sequence[str]) -> dict[str, Curve]:
    """Each term's share of the gradient over steps; steps at which a term is missing are left out for all."""
    curves = {term: curve(seeds, "evaluate", SHARE + term) for term in terms}
    found = {term: line for term, line in curves.items() if line is not None}
    if not found:
        return {}
    common = sorted(set.intersection(*(set(line.steps) for line in found.values())))
    if not common:
        return {}
    return {term: _restricted(line, common) for term, line in found.items()}


def _restricted(line: Curve, steps: Sequence[float]) -> Curve:
    at = [line.steps.index(step) for step in steps]
    pick = [[column[i] for i in at] for column in (line.steps, line.means, line.low, line.high)]
    return Curve(*pick)


def _thinned(steps: list[float]) -> list[float]:
    """At most a screen's worth of points, evenly chosen, first and last among them."""
    if len(steps) <= _MOST_POINTS:
        return steps
    stride = (len(steps) - 1) / (_MOST_POINTS - 1)
    return [steps[round(i * stride)] for i in range(_MOST_POINTS)]


def _keys(records: Iterable[Record], kind: str) -> list[str]:
    found: dict[str, None] = {}
    for record in records:
        if record.get("kind") == kind:
            found.update((key, None) for key, raw in record.items() if number(raw) is not None)
    return [key for key in found if key not in _BOOKKEEPING]
