"""What safety costs: checkpoints, the check that every value is finite, the record of every step.

Both sides of a ratio are timed in turn in one process, with the engine's own loop.

pytest tests/benchmarks/test_safety_cost.py -m benchmark -n 0 -s
"""

from __future__ import annotations

import statistics

import pytest
import torch

import kdengine
from kdengine.api import RunInfo
from kdengine.engine import loop, state
from kdengine.engine.batching import to_batch
from kdengine.engine.feed import Feed
from kdengine.losses import KD
from tests.benchmarks.stopwatch import in_turn, ratio
from tests.benchmarks.test_step_overhead import make_data, make_optimizer, models, quiet

CHECKPOINT_EVERY = 100
TARGET_CHECKPOINTS = 0.02
TARGET_FINITE = 1.01
TARGET_RECORD = 0.01


def assemble(name: str, out, batch_size: int):
    """A fit ready to step, and one batch to step on."""
    student, teacher = models(name)
    trained = kdengine.Engine(
        student,
        teacher,
        losses={"kd": KD(temperature=4.0)},
        optimizer=make_optimizer(student),
        loggers=[],
        out=out,
        device="cpu",
    )
    data = make_data(batch_size, 1)
    fit = trained.assemble(Feed(data, 1, to_batch))
    fit.loggers.start(RunInfo("student", out, 1, 1, 0))
    return fit, data[0]


def stepper(fit, item):
    return lambda: loop.train_step(fit, [to_batch(item)])


@pytest.mark.benchmark
def test_a_checkpoint_every_100_steps_costs_at_most_2_percent_of_their_time(tmp_path):
    fit, item = assemble("resnet20", tmp_path, 128)
    step = stepper(fit, item)
    step()  # the optimizer has its state
    with quiet():
        times = in_turn({"step": step, "checkpoint": lambda: state.save(fit)}, rounds=15)
    cost = statistics.median(times["checkpoint"]) / (CHECKPOINT_EVERY * statistics.median(times["step"]))
    print(
        f"\nResNet-20, batch 128: step {statistics.median(times['step']) * 1e3:.1f} ms, checkpoint "
        f"{statistics.median(times['checkpoint']) * 1e3:.1f} ms: {cost:.3%} of {CHECKPOINT_EVERY} steps"
    )
    assert cost <= TARGET_CHECKPOINTS


@pytest.mark.benchmark
def test_the_finite_check_costs_at_most_1_percent_of_a_step(monkeypatch):
    fit, item = assemble("resnet20", None, 128)
    checked = stepper(fit, item)

    def unchecked():
        with monkeypatch.context() as patch:
            patch.setattr("kdengine.engine.update.find_nonfinite", lambda gradients, found: None)
            checked()

    with quiet():
        times = in_turn({"unchecked": unchecked, "checked": checked, "again": unchecked}, rounds=30)
    cost, control = ratio(times, "checked", "unchecked"), ratio(times, "again", "unchecked")
    alone = in_turn({"check": lambda: check(fit), "step": checked}, rounds=5)
    print(
        f"\nResNet-20, batch 128: with the check {cost:.4f} of the time without, without it again {control:.4f}; "
        f"the check alone is {ratio(alone, 'check', 'step'):.3%} of a step"
    )
    assert cost <= max(TARGET_FINITE, control)
    assert ratio(alone, "check", "step") <= TARGET_FINITE - 1


def check(fit):
    """What is done to see that gradients are finite, without the step around it."""
    from kdengine.engine.update import find_nonfinite

    for parameters in fit.kinds:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.ones_like(parameter)
        find_nonfinite([parameter.grad for parameter in parameters], fit.found.tensor)
    fit.found.take()


@pytest.mark.benchmark
def test_the_record_of_every_step_costs_at_most_1_percent_of_a_step_of_the_tutorial(tmp_path):
    """What it adds is seen on a step that does almost nothing, and compared with one that trains something."""
    recorded, bare, usual = (
        stepper(*assemble(name, out, size))
        for name, out, size in (("linear", tmp_path, 4), ("linear", None, 4), ("tutorial", None, 128))
    )
    with quiet():
        times = in_turn({"bare": bare, "recorded": recorded, "again": bare, "tutorial": usual}, rounds=60)
    extra, control = (
        statistics.median(b - a for a, b in zip(times["bare"], times[side], strict=True))
        for side in ("recorded", "again")
    )
    step = statistics.median(times["tutorial"])
    print(
        f"\nsteps.jsonl: {extra * 1e6:+.0f} us a step, a second time without {control * 1e6:+.0f} us: "
        f"{extra / step:.2%} of {step * 1e3:.1f} ms, the tutorial's networks at batch 128"
    )
    assert extra <= TARGET_RECORD * step
