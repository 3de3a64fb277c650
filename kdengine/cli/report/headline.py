"""The sentences at the top, made from the numbers and no kinder than they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdengine.cli.report import formats
from kdengine.cli.report.formats import difference, measure, metric_name, size, whole_percent
from kdengine.cli.report.reading import Data, Model, Report
from kdengine.cli.report.values import Value

UNMEASURED = "The run was not evaluated, so there is no accuracy to show."


@dataclass(frozen=True)
class Outcome:
    """What distillation did to the monitored metric.

    Attributes:
        metric: its name.
        alone: the student trained alone; None without a baseline.
        distilled: the distilled student.
        teacher: the teacher, where it was measured.
        gain: improvement over the baseline, positive when better whatever the metric's direction; None without one.
        noise: what the gain must exceed to count; None when nothing tells.
        recovered: part of the gap to the teacher that was closed; None where that means nothing.
    """

    metric: str
    alone: Value | None
    distilled: Value
    teacher: Value | None
    gain: float | None
    noise: float | None
    recovered: float | None

    @property
    def verdict(self) -> str:
        """``gain``, ``loss``, ``noise`` or ``unknown``."""
        if self.gain is None:
            return "unknown"
        if abs(self.gain) <= (self.noise or 0.0):
            return "noise"
        return "gain" if self.gain > 0 else "loss"


@dataclass(frozen=True)
class Headline:
    """What stands at the top: one sentence, its evidence, and the condition it holds under."""

    sentence: str
    evidence: str
    condition: str


def outcome(run: Report) -> Outcome | None:
    """Weigh a run; None when its monitored metric has no value."""
    metric = run.monitor
    if metric is None:
        return None
    sign = -1.0 if run.lower_is_better else 1.0
    distilled = run.student.metrics[metric]
    alone, teacher = _of(run.baseline, metric), _of(run.teacher, metric)
    gain = None if alone is None else sign * (distilled.mean - alone.mean)
    noise = None if alone is None else noise_level(run, metric, distilled, alone)
    recovered = None
    if gain is not None and alone is not None and teacher is not None:
        gap = sign * (teacher.mean - alone.mean)
        if gain > (noise or 0.0) and gap > (noise or 0.0):
            recovered = gain / gap
    return Outcome(metric, alone, distilled, teacher, gain, noise, recovered)


def noise_level(run: Report, metric: str, first: Value, second: Value) -> float | None:
    """The smallest difference that counts.

    Over seeds: the pooled standard deviation, or twice the standard error of the difference of the means,
    ``2 sd sqrt(2 / n)``, where that is more (under eight seeds). For one seed and a share of the test items: twice
    the standard error of the difference of two binomial shares. Otherwise nothing is known.
    """
    seeds = min(first.n, second.n)
    if seeds > 1 and run.pooled_sd is not None:
        return run.pooled_sd * max(1.0, 2.0 * math.sqrt(2.0 / seeds))
    if not formats.is_share(metric) or not run.data.test:
        return None
    variance = sum(max(0.0, part.mean * (1.0 - part.mean)) for part in (first, second)) / run.data.test
    return 2.0 * math.sqrt(variance)


def headline(run: Report, noun: str) -> Headline:
    """The top of a run's page.

    Args:
        run: the run.
        noun: what the data set holds: ``images`` or ``examples``.
    """
    result = outcome(run)
    if result is None:
        return Headline(f"The student {run.name} was distilled", UNMEASURED, condition(run, noun))
    return Headline(_sentence(result), evidence(run, result, noun), condition(run, noun))


def _sentence(result: Outcome) -> str:
    name, now = metric_name(result.metric), measure(result.metric, result.distilled.mean)
    if result.alone is None:
        return f"The distilled student reaches {now} {name}{_below_teacher(result)}"
    before = measure(result.metric, result.alone.mean)
    if result.verdict == "gain":
        return f"Distillation took the student from {before} to {now} {name}"
    if result.verdict == "loss":
        return f"Distillation made the student worse: from {before} to {now} {name}"
    if before == now:
        return f"Distillation left the student where it was, at {now} {name}"
    return f"Distillation made no clear difference: {before} alone, {now} distilled ({name})"


def evidence(run: Report, result: Outcome, noun: str) -> str:
    """How sure the headline is, and how far the student still is from its teacher."""
    parts = [_certainty(run, result, noun), _towards_teacher(result)]
    return " ".join(part for part in parts if part)


def _certainty(run: Report, result: Outcome, noun: str) -> str:
    if result.alone is None or result.gain is None:
        return "No student was trained alone, so this run cannot say what distillation added; baseline = true does."
    change = difference(result.metric, result.distilled.mean - result.alone.mean)
    seeds = min(result.distilled.n, result.alone.n)
    if seeds > 1:
        text = f"{change} over {seeds} seeds"
        if run.pooled_sd is not None:
            text += f"; pooled sd {size(result.metric, run.pooled_sd)}"
        return f"{text}{_seed_noise(result) if result.verdict == 'noise' else ''}."
    if result.verdict == "noise" and result.noise:
        least = size(result.metric, result.noise)
        return (
            f"{change} with one seed; {formats.count(run.data.test or 0)} test {noun} cannot tell apart "
            f"less than about {least}."
        )
    return f"{change} with one seed; more seeds would show how much is chance."


def _seed_noise(result: Outcome) -> str:
    return f", so less than {size(result.metric, result.noise)} may be chance" if result.noise else ""


def _towards_teacher(result: Outcome) -> str:
    if result.teacher is None or result.alone is None:
        return ""
    reached = measure(result.metric, result.teacher.mean)
    if result.recovered is None:
        return f"The teacher stands at {reached}."
    if result.recovered > 1.0:
        return f"It passes its teacher ({reached})."
    return f"It recovers {formats.percent(result.recovered, 0)} of the gap to the teacher ({reached})."


def _below_teacher(result: Outcome) -> str:
    if result.teacher is None:
        return ""
    reached = measure(result.metric, result.teacher.mean)
    return f"; its teacher, {reached}"


def condition(run: Report, noun: str) -> str:
    """What the student and its baseline were given."""
    seen = _labels_seen(run.data, noun)
    if run.baseline is None:
        return f"The student sees {seen}." if seen else ""
    if not seen:
        return "The baseline is the same student, trained for the same number of steps."
    return f"The student sees {seen}; its baseline sees the same labels and takes the same number of steps."


def _labels_seen(data: Data, noun: str) -> str:
    share = data.labelled_share
    if share is None and data.labelled is not None and data.train:
        share = data.labelled / data.train
    if share is None:
        return ""
    if share >= 1.0:
        return f"the labels of all {formats.count(data.train)} training {noun}" if data.train else "every label"
    sizes = ""
    if data.labelled is not None and data.train:
        sizes = f" ({formats.count(data.labelled)} of {formats.count(data.train)})"
    if share <= 0.0:
        return f"no labels of the training {noun}"
    return f"labels for {whole_percent(share)} of the training {noun}{sizes}"


def _of(model: Model | None, metric: str) -> Value | None:
    return None if model is None else model.metrics.get(metric)
