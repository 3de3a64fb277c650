"""A scheduler of another interface is refused, and a horizon that is not the fit's is told, before training."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.optim import lr_scheduler as rates

import kdengine
from tests.engine.common import engine, flat, items, mlp

EPOCHS, STEPS = 5, 20  # 32 items in batches of 8


def fit(scheduler, student=None, **options):
    student = student or mlp()
    options.setdefault("metrics", {"top1": "top1"})
    evaluation = options.pop("evaluation", None)
    made = engine(student, lr_scheduler=scheduler, **options)
    return made.fit(kdengine.loader(items(), 8), evaluation, epochs=EPOCHS)


class OfTimm:
    """The interface of timm's schedulers."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, epoch, metric=None):
        raise AssertionError("never called")

    def state_dict(self):
        return {}

    load_state_dict = state_dict


class WithoutState:
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        raise AssertionError("never called")


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("cosine", r"lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR\(optimizer, steps\)"),
        (0.1, "lr_scheduler is 0.1"),
        (lambda opt, steps: OfTimm(opt), r"OfTimm.step\(\) needs epoch"),
        (lambda opt, steps: WithoutState(opt), r"has no state_dict\(\)"),
        (lambda opt, steps: "cosine", "returned a str"),
        (lambda opt, steps: rates.CosineAnnealingLR, "returned a class"),
        (lambda opt: rates.StepLR(opt, 3), r"is called with \(optimizer, steps\): too many"),
        (lambda opt, steps: rates.StepLR(torch.optim.SGD(mlp().parameters(), 0.1), 3), "of another optimizer than"),
        (rates.OneCycleLR, "number of steps for its max_lr.*total_steps=steps"),
        (rates.ExponentialLR, "number of steps for its gamma"),
        (rates.StepLR, "number of steps for its step_size"),
        (rates.ReduceLROnPlateau, "number of steps for its mode"),
        (lambda opt, steps: rates.OneCycleLR(opt, 0.1, total_steps=EPOCHS), "total_steps=5 and raises.* 20 optimizer"),
        (
            lambda opt, steps: rates.SequentialLR(
                opt, [rates.LinearLR(opt), rates.OneCycleLR(opt, 0.1, total_steps=4)], milestones=[5]
            ),
            "total_steps=4 and raises",
        ),
    ],
)
def test_a_scheduler_that_the_engine_cannot_step_is_refused_before_training(scheduler, said):
    student = mlp()
    before = flat(student).clone()
    with pytest.raises(kdengine.ConfigurationError, match=said):
        fit(scheduler, student)
    assert torch.equal(before, flat(student))


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (lambda opt, steps: rates.CosineAnnealingLR(opt, EPOCHS), "T_max=5 .* 20 steps in 5 epochs.*optimizer, steps"),
        (lambda opt, steps: rates.CosineAnnealingLR(opt, 2 * steps), "T_max=40, but the fit has 20"),
        (lambda opt, steps: rates.OneCycleLR(opt, 0.1, total_steps=5 * steps), "total_steps=100"),
        (lambda opt, steps: rates.PolynomialLR(opt, total_iters=EPOCHS), "total_iters=5"),
        (lambda opt, steps: rates.LinearLR(opt, 1.0, 0.0, total_iters=EPOCHS), "total_iters=5"),
        (lambda opt, steps: rates.LinearLR(opt, 0.1, total_iters=1000), "total_iters=1000, but the fit has 20"),
        (lambda opt, steps: rates.CyclicLR(opt, 0.01, 0.1), "total_size=4000, but the fit has 20"),
        (lambda opt, steps: rates.StepLR(opt, 300), "step_size=300, but the fit has 20"),
        (lambda opt, steps: rates.CosineAnnealingWarmRestarts(opt, 400), "T_0=400, but the fit has 20"),
        (lambda opt, steps: rates.MultiStepLR(opt, [2, 4]), "milestones=4"),
        (lambda opt, steps: rates.CosineAnnealingWarmRestarts(opt, T_0=3), "T_0=3"),
        (lambda opt, steps: rates.ExponentialLR(opt, 0.2), "brings the learning rate from 0.1 to"),
        (lambda opt, steps: rates.StepLR(opt, 1, 0.1), "brings the learning rate"),
        (lambda opt, steps: rates.LambdaLR(opt, lambda step: max(0.0, 1 - step / EPOCHS)), "brings the learning rate"),
        (
            lambda opt, steps: rates.SequentialLR(
                opt,
                [rates.LinearLR(opt, 0.1, total_iters=2), rates.CosineAnnealingLR(opt, EPOCHS - 2)],
                milestones=[2],
            ),
            "T_max=3",
        ),
        (
            lambda opt, steps: rates.ChainedScheduler([rates.ConstantLR(opt), rates.CosineAnnealingLR(opt, EPOCHS)]),
            "T_max=5",
        ),
        (
            lambda opt, steps: rates.SequentialLR(
                opt, [rates.ConstantLR(opt), rates.CosineAnnealingLR(opt, 60)], milestones=[40]
            ),
            "last part at step 40",
        ),
    ],
)
def test_a_horizon_that_is_not_the_fits_is_warned_of_once(scheduler, said):
    with pytest.warns(UserWarning, match=said) as caught:
        fit(scheduler)
    assert len([warning for warning in caught if "optimizer step" in str(warning.message)]) == 1
    assert caught[0].filename.endswith("test_schedulers.py"), "told at the user's own line"


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda opt, steps: rates.CosineAnnealingLR(opt, steps),
        lambda opt, steps: rates.CosineAnnealingLR(opt, steps - 1),
        rates.CosineAnnealingLR,
        rates.PolynomialLR,
        rates.CosineAnnealingWarmRestarts,
        lambda opt, steps: rates.OneCycleLR(opt, 0.1, total_steps=steps),
        lambda opt, steps: rates.LinearLR(opt, 0.1, total_iters=3),
        lambda opt, steps: rates.ConstantLR(opt, total_iters=2),
        lambda opt, steps: rates.StepLR(opt, 7),
        lambda opt, steps: rates.StepLR(opt, 1, 0.97),
        lambda opt, steps: rates.MultiStepLR(opt, [10, 15]),
        lambda opt, steps: rates.ExponentialLR(opt, 0.9),
        lambda opt, steps: rates.LambdaLR(opt, lambda step: min(1.0, step / 4) * (1 - step / 21)),
        lambda opt, steps: rates.CyclicLR(opt, 0.01, 0.1, step_size_up=4),
        lambda opt, steps: rates.ReduceLROnPlateau(opt, mode="max"),
        lambda opt, steps: None,
        lambda opt, steps: rates.SequentialLR(
            opt,
            [rates.LinearLR(opt, 0.1, total_iters=4), rates.CosineAnnealingLR(opt, steps - 4)],
            milestones=[4],
        ),
    ],
)
def test_a_schedule_of_the_fits_length_is_taken_without_a_word(scheduler):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(scheduler, evaluation=kdengine.loader(items(), 8)).steps == STEPS


def test_an_engine_warns_of_a_horizon_once_however_often_it_fits():
    made = engine(lr_scheduler=lambda opt, steps: rates.CosineAnnealingLR(opt, 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            made.fit(kdengine.loader(items(), 8), epochs=2)
    assert len(caught) == 1


def test_nobody_knows_how_long_a_loop_of_ones_own_will_be():
    made = engine(lr_scheduler=lambda opt, steps: rates.CosineAnnealingLR(opt, 1000), ema=0.999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.train_step([items()[:8]])


def plateau(mode="min"):
    return lambda opt, steps: rates.ReduceLROnPlateau(opt, mode=mode, patience=0)


class Falling(kdengine.Metric):
    higher_is_better = False

    def reset(self):
        self.items = 0

    def update(self, batch):
        self.items += batch.size

    def compute(self):
        return 1.0


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"metrics": {"top1": "top1"}}, "min"),
        ({"metrics": {"ece": "calibration_error"}}, "max"),
        ({"metrics": {"mine": Falling()}}, "max"),
        ({"metrics": {"top1": "top1"}, "monitor_mode": "max"}, "min"),
        ({"metrics": {"my_accuracy": lambda logits, labels: (logits.argmax(-1) == labels).float()}}, "min"),
        ({"metrics": ["top1", "calibration_error"], "monitor": "calibration_error"}, "max"),
    ],
)
def test_a_plateau_that_waits_for_the_worst_is_refused_before_training(options, mode):
    with pytest.raises(kdengine.ConfigurationError, match=rf"mode='{mode}'.*is better when it is"):
        fit(plateau(mode), evaluation=kdengine.loader(items(), 8), **options)


def test_a_plateau_without_anything_to_follow_is_refused_before_training():
    with pytest.raises(kdengine.ConfigurationError, match="stepped at evaluations, but fit was given none"):
        fit(plateau("max"))
    with pytest.raises(kdengine.ConfigurationError, match="follows the monitored metric, but there is none"):
        fit(plateau("max"), evaluation=kdengine.loader(items(), 8), metrics={})


def test_a_plateau_says_the_direction_of_a_function_that_does_not():
    seen = iter([0.3, 0.2, 0.1, 0.2, 0.3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit(plateau("min"), evaluation=lambda student: {"val_loss": next(seen)}, metrics={})
    assert (result.best["value"], result.best["mode"]) == (0.1, "min")


def test_a_plateau_that_alone_says_the_direction_is_told():
    with pytest.warns(UserWarning, match="by ReduceLROnPlateau the lowest"):
        fit(plateau("min"), evaluation=lambda student: {"answer": 1.0}, metrics={})


def test_a_plateau_is_not_misled_by_infinity():
    seen = iter([float("inf"), 0.5, 0.6, 0.7, 0.8])
    result = fit(plateau("max"), evaluation=lambda student: {"score": next(seen)}, metrics={})
    assert result.history[-1]["lr"] == pytest.approx(0.1 * 0.1), "one evaluation did not improve: the first"
