"""Builtin schedules against plain computations."""

import json
import math

import pytest
import torch

from kdengine.api import ConfigurationError, Progress
from kdengine.schedules import Constant, Cosine, Linear, OnMetric, Piecewise, Step, WarmUp

STEPS = 101


def at(schedule, percent, **progress):
    return schedule.value(Progress(step=percent, steps=STEPS, **progress))


def test_constant_never_changes():
    assert {at(Constant(3), percent) for percent in range(STEPS)} == {3.0}


@pytest.mark.parametrize(("percent", "value"), [(0, 4.0), (20, 4.0), (40, 3.0), (80, 1.0), (100, 1.0)])
def test_linear_runs_between_begin_and_until(percent, value):
    assert at(Linear(4, 1, begin=0.2, until=0.8), percent) == pytest.approx(value)


def test_cosine_is_torchs_annealing():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=4.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - 1, eta_min=1.0)
    for percent in range(STEPS):
        assert at(Cosine(4.0, 1.0), percent) == pytest.approx(annealing.get_last_lr()[0])
        optimizer.step()
        annealing.step()


def test_cosine_rises_as_well_and_ends_exactly():
    schedule = Cosine(0.1, 0.7, begin=0.5)
    assert at(schedule, 50) == 0.1
    assert at(schedule, 75) == pytest.approx(0.4)
    assert at(schedule, 100) == 0.7


def test_warmup_reaches_its_value_and_stays():
    schedule = WarmUp(0.9, over=0.2, start=0.1)
    assert at(schedule, 0) == 0.1
    assert at(schedule, 10) == pytest.approx(0.5)
    assert at(schedule, 20) == at(schedule, 100) == 0.9


def test_warmup_over_nothing_is_constant():
    assert at(WarmUp(0.9, over=0.0), 0) == 0.9


def test_warmup_by_epochs_is_the_stair_of_the_published_code():
    """The code of DKD and ReviewKD: the loss times min(epoch / 20, 1), epoch counted from 1."""
    published = [min(epoch / 20, 1.0) for epoch in range(1, 241)]
    stair = [at(WarmUp(1.0, epochs=20), 0, epoch=epoch, epochs=240) for epoch in range(240)]
    assert stair == published
    assert (stair[0], sum(stair[:20])) == (0.05, pytest.approx(10.5, rel=1e-12))
    line = [WarmUp(1.0, over=20 / 240).value(Progress(step, 24_001, step // 100, 240)) for step in range(2000)]
    assert sum(line) / 100 / sum(stair[:20]) == pytest.approx(0.952, rel=1e-3)
    assert at(WarmUp(4.0, start=2.0, epochs=4), 0, epoch=1) == 3.0


def test_step_multiplies_every_so_many_epochs():
    values = [at(Step(8.0, 0.5, every=2), 0, epoch=epoch, epochs=5) for epoch in range(5)]
    assert values == [8.0, 8.0, 4.0, 4.0, 2.0]


def test_piecewise_linear_joins_its_points():
    schedule = Piecewise([(0.2, 1.0), (0.6, 3.0), (0.8, 0.0)])
    assert [at(schedule, p) for p in (0, 20, 40, 60, 70, 80, 100)] == pytest.approx([1, 1, 2, 3, 1.5, 0, 0])


def test_piecewise_constant_holds_each_value():
    schedule = Piecewise([[0.0, 1.0], [0.5, 3.0]], interpolation="constant")
    assert [at(schedule, p) for p in (0, 49, 50, 100)] == [1.0, 1.0, 3.0, 3.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(1, 0, begin=0.5, until=0.5),
        lambda: Cosine(1, 0, until=1.5),
        lambda: WarmUp(1, over=2.0),
        lambda: WarmUp(1, over=0.5, epochs=20),
        lambda: Constant(math.nan),
        lambda: Constant("4"),
        lambda: Linear(1, math.inf),
        lambda: Cosine(True, 1),
        lambda: Step(1, 0.5, every=1.5),
        lambda: Piecewise([(0, 1), (1, math.nan)]),
        lambda: OnMetric("top1", math.nan, 0.5, patience=1),
        lambda: OnMetric("top1", 1.0, math.inf, patience=1),
        lambda: WarmUp(1, epochs=0),
        lambda: WarmUp(1, epochs=2.5),
        lambda: Step(1, 0.5, every=0),
        lambda: Piecewise([]),
        lambda: Piecewise([(0.5, 1.0), (0.5, 2.0)]),
        lambda: Piecewise([(0.0, 1.0), (1.2, 2.0)]),
        lambda: Piecewise([(0.0, 1.0)], interpolation="cubic"),
        lambda: OnMetric("top1", 1.0, 0.5, patience=0),
        lambda: OnMetric("top1", 1.0, 0.5, patience=1, mode="best"),
        lambda: OnMetric("top1", 1.0, 0.5, patience=1, threshold=-1.0),
    ],
)
def test_arguments_that_make_no_schedule_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"expected|got"):
        make()


@pytest.mark.parametrize("schedule", [Linear(1, 0), Cosine(1, 0), WarmUp(1), Piecewise([(0, 1), (1, 0)])])
def test_one_step_of_training_is_the_start(schedule):
    assert schedule.value(Progress(step=0, steps=1)) == at(schedule, 0)


class Follower:
    """Shows a schedule a run of evaluations, each at several steps."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.step = 0

    def see(self, *values, repeats=3):
        seen = []
        for value in values:
            self.step += 10
            for offset in range(repeats):  # a fresh mapping each time, as after a resume
                metrics = {"step": float(self.step)} if value == "missing" else {"m": value, "step": float(self.step)}
                seen.append(self.schedule.value(Progress(self.step + offset, 1000, metrics=metrics)))
            assert len(set(seen[-repeats:])) == 1, "one evaluation changed the value twice"
        return seen[::repeats]


def test_on_metric_waits_for_patience_evaluations():
    follower = Follower(OnMetric("m", 8.0, 0.5, patience=2))
    assert follower.see(0.5, 0.5, 0.6, 0.6, 0.4, 0.6, 0.6) == [8.0, 8.0, 8.0, 8.0, 4.0, 4.0, 2.0]


def test_on_metric_min_and_threshold():
    follower = Follower(OnMetric("m", 8.0, 0.5, patience=1, mode="min", threshold=0.1))
    assert follower.see(1.0, 0.95, 0.85, 0.9) == [8.0, 4.0, 4.0, 2.0]


def test_on_metric_undefined_does_not_count_and_nan_does():
    follower = Follower(OnMetric("m", 8.0, 0.5, patience=2))
    assert follower.see(0.5, None, "missing", math.nan, math.nan, 0.6, 0.6) == [8.0, 8.0, 8.0, 8.0, 4.0, 4.0, 4.0]
    assert follower.schedule.best == 0.6


def test_on_metric_recovers_from_nan_at_the_start():
    follower = Follower(OnMetric("m", 8.0, 0.5, patience=3))
    follower.see(math.nan, 0.1)
    assert follower.schedule.best == 0.1


def test_on_metric_does_nothing_before_the_first_evaluation():
    assert OnMetric("m", 8.0, 0.5, patience=1).value(Progress(5, 10)) == 8.0


def test_on_metric_without_steps_counts_one_evaluation_per_epoch():
    schedule = OnMetric("m", 8.0, 0.5, patience=1)
    values = [schedule.value(Progress(s, 9, epoch=s // 3, epochs=3, metrics={"m": 0.5})) for s in range(9)]
    assert values == [8.0] * 3 + [4.0] * 3 + [2.0] * 3


def test_on_metric_names_what_the_evaluation_has():
    with pytest.raises(ConfigurationError, match=r"'top2'.*top1"):
        OnMetric("top2", 1.0, 0.5, patience=1).value(Progress(1, 10, metrics={"top1": 0.5, "step": 1.0}))


def test_on_metric_goes_on_from_its_state_in_the_middle_of_an_evaluation():
    whole, first = (Follower(OnMetric("m", 8.0, 0.5, patience=2)) for _ in range(2))
    expected = whole.see(0.5, 0.4, 0.3, 0.2, 0.1)
    seen = first.see(0.5, 0.4)
    state = json.loads(json.dumps(first.schedule.state_dict()))
    second = Follower(OnMetric("m", 8.0, 0.5, patience=2))
    second.schedule.load_state_dict(state)
    second.step = 10
    assert second.see(0.4) == expected[1:2], "the evaluation before the resume was counted again"
    assert seen + second.see(0.3, 0.2, 0.1) == expected


@pytest.mark.parametrize(
    ("metric", "mode"), [("val_loss", "min"), ("calibration_error", "min"), ("top1", "max"), ("answer", "max")]
)
def test_on_metric_takes_its_direction_from_the_metrics_name_unless_it_is_said(metric, mode):
    assert OnMetric(metric, 1.0, 0.5, patience=1).mode == mode
    assert OnMetric(metric, 1.0, 0.5, patience=1, mode="max").mode == "max"


def test_on_metric_takes_infinity_for_no_improvement():
    schedule = OnMetric("top1", start=4.0, factor=0.5, patience=1)
    seen = [0.1, math.inf, 0.2, math.nan]
    values = [
        schedule.value(Progress(step, 9, metrics={"top1": value, "step": step})) for step, value in enumerate(seen)
    ]
    assert values == [4.0, 2.0, 2.0, 1.0]
