"""What no evaluation of a fit could give is told before training."""

from __future__ import annotations

import warnings

import pytest
import torch

import kdengine
from kdengine.losses import CE, KD
from tests.engine.common import engine, flat, items, mlp, sgd


def follow(metric="top1"):
    return kdengine.OnMetric(metric, start=1.0, factor=0.5, patience=1)


@pytest.mark.parametrize(
    ("options", "evaluates", "said"),
    [
        ({"weights": {"kd": follow()}}, False, "weights.kd follows the metric 'top1', but fit was given no evaluation"),
        ({"losses": {"kd": KD(temperature=follow())}, "weights": {}}, False, "kd.temperature follows the metric"),
        ({"weights": {"kd": follow("top5")}}, True, "follows 'top5', which is no metric here; did you mean 'top1'"),
    ],
)
def test_a_schedule_that_waits_for_a_metric_which_never_comes_is_refused(options, evaluates, said):
    student = mlp()
    before = flat(student).clone()
    evaluation = kdengine.loader(items(), 8) if evaluates else None
    with pytest.raises(kdengine.ConfigurationError, match=said):
        engine(student, metrics=["top1"], **options).fit(kdengine.loader(items(), 8), evaluation, epochs=1)
    assert torch.equal(before, flat(student))


def test_a_schedule_may_follow_what_an_evaluation_function_gives():
    loader = kdengine.loader(items(), 8)
    result = engine(weights={"kd": follow("quality")}).fit(loader, lambda student: {"quality": 1.0}, epochs=2)
    assert result.steps == 8


def test_a_metric_that_needs_a_teacher_is_refused_before_a_student_trains_without_one():
    student = mlp()
    before = flat(student).clone()
    alone = kdengine.Engine(student, losses=[CE()], optimizer=sgd, loggers=[], metrics=["top1", "agreement"])
    with pytest.raises(kdengine.ConfigurationError, match="'agreement' compares the student with a teacher"):
        alone.fit(kdengine.loader(items(), 8), kdengine.loader(items(), 8), epochs=1)
    assert torch.equal(before, flat(student))


def test_an_evaluation_loader_without_anything_to_measure_is_warned_of():
    loader = kdengine.loader(items(), 8)
    with pytest.warns(UserWarning, match="nothing to measure"):
        engine().fit(loader, loader, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(gradient_shares=True).fit(loader, loader, epochs=1)


def test_a_moving_average_that_the_fit_is_too_short_for_is_warned_of():
    loader = kdengine.loader(items(), 8)
    with pytest.warns(
        UserWarning, match=r"ema=0.999 averages over about 1,000 optimizer steps, but the fit has 4: 100%"
    ):
        engine(ema=0.999).fit(loader, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(ema=0.9).fit(loader, epochs=1)
