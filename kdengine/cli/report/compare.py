"""What several runs say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kdengine.cli.report.formats import measure, metric_name, size
from kdengine.cli.report.headline import noise_level, outcome
from kdengine.cli.report.reading import Report
from kdengine.cli.report.values import Value


@dataclass(frozen=True)
class Verdict:
    """The top of a comparison."""

    sentence: str
    evidence: str


def names(runs: Sequence[Report]) -> list[str]:
    """A name for each run: its own where that tells it apart, else its directory's, else its number."""
    for candidates in ([run.name for run in runs], [run.path.resolve().name for run in runs]):
        if len(set(candidates)) == len(runs):
            return candidates
    seen = Counter(run.name for run in runs)
    return [f"{run.name} ({at})" if seen[run.name] > 1 else run.name for at, run in enumerate(runs, 1)]


def verdict(runs: Sequence[Report], labels: Sequence[str]) -> Verdict:
    """Which run is best, where their numbers compare at all."""
    opening = f"{len(runs)} runs compared"
    metrics = {run.monitor for run in runs}
    if len(metrics) > 1 or None in metrics:
        return Verdict(opening, "They do not measure the same thing, so there is no order among them.")
    if len({(run.data.name, run.data.test) for run in runs}) > 1:
        return Verdict(opening, "They are evaluated on different data, so there is no order among them.")
    metric = next(iter(metrics)) or ""
    ranked = _ranked(runs, labels)
    (best, first, run), (other, second, _) = ranked[0], ranked[1]
    lead = abs(first.mean - second.mean)
    noise = noise_level(run, metric, first, second)
    reached = f"{measure(metric, first.mean)} {metric_name(metric)}"
    if noise is not None and lead <= noise:
        level = [label for label, value, _ in ranked if abs(first.mean - value.mean) <= noise]
        return Verdict(
            f"No clear winner among {len(runs)} runs: the best reach about {reached}",
            f"{_listed(level)} lie within {size(metric, noise)} of each other, which may be chance.",
        )
    if lead == 0:
        return Verdict(opening, f"{best} and {other} both reach {reached}.")
    told = "" if noise is not None else " How much seeds differ was not measured."
    return Verdict(
        f"{best} is the best of {len(runs)} runs, at {reached}",
        f"It is {size(metric, lead)} ahead of {other}.{told}",
    )


def _ranked(runs: Sequence[Report], labels: Sequence[str]) -> list[tuple[str, Value, Report]]:
    results = [(label, outcome(run), run) for run, label in zip(runs, labels, strict=True)]
    found = [(label, result.distilled, run) for label, result, run in results if result is not None]
    sign = 1.0 if runs[0].lower_is_better else -1.0
    return sorted(found, key=lambda entry: sign * entry[1].mean)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
