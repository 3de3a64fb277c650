from __future__ import annotations

from typing import Any

import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.recipe.rates import NAMES, check_rate, make_rate
from kdengine.recipe.schema import LRScheduleTable

STEPS_PER_EPOCH, EPOCHS = 5, 8
STEPS = STEPS_PER_EPOCH * EPOCHS


def rates(lr: float = 1.0, **table: Any) -> list[float]:
    """The rate of each step, and the one that is left after the last."""
    checked = LRScheduleTable(**table)
    assert check_rate(checked, ("lr_schedule",)) == []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    factory = make_rate(checked, STEPS_PER_EPOCH)
    assert factory is not None
    scheduler = factory(optimizer, STEPS)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_cosine_begins_at_the_full_rate_and_ends_at_zero():
    seen = rates(use="cosine")
    assert seen[0] == 1.0
    assert seen[STEPS // 2] == pytest.approx(0.5)
    assert seen[-1] == pytest.approx(0.0, abs=1e-12)
    assert sorted(seen, reverse=True) == seen


def test_linear_ends_at_zero():
    assert rates(use="linear")[-1] == pytest.approx(0.0, abs=1e-12)


def test_warm_up_rises_for_its_epochs_and_the_schedule_takes_the_rest():
    seen = rates(use="cosine", warmup=2.0)
    warmup = 2 * STEPS_PER_EPOCH
    assert seen[:warmup] == pytest.approx([(step + 1) / warmup * 1.0 for step in range(warmup)], rel=0.15)
    assert seen[0] == pytest.approx(1.0 / warmup)
    assert seen[warmup] == pytest.approx(1.0)
    assert seen[-1] == pytest.approx(0.0, abs=1e-12)


def test_warm_up_before_a_constant_rate():
    seen = rates(use="constant", warmup=1.0)
    assert seen[0] == pytest.approx(1.0 / STEPS_PER_EPOCH)
    assert seen[STEPS_PER_EPOCH:] == [pytest.approx(1.0)] * (STEPS - STEPS_PER_EPOCH + 1)


def test_milestones_are_epochs():
    seen = rates(use="multistep", milestones=[2, 4], gamma=0.1)
    changes = [step for step in range(1, STEPS) if seen[step] != seen[step - 1]]
    assert changes == [2 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH]


def test_a_stair_is_as_long_as_its_epochs():
    seen = rates(use="step", step_size=3, gamma=0.5)
    assert [step for step in range(1, STEPS) if seen[step] != seen[step - 1]] == [15, 30]


def test_exponential_decays_by_gamma_per_epoch():
    seen = rates(use="exponential", gamma=0.5)
    assert [seen[epoch * STEPS_PER_EPOCH] for epoch in range(4)] == pytest.approx([1.0, 0.5, 0.25, 0.125])


def test_a_given_period_is_in_epochs():
    assert rates(use="cosine", T_max=4)[4 * STEPS_PER_EPOCH] == pytest.approx(0.0, abs=1e-12)
    assert rates(use="restarts", T_0=2)[2 * STEPS_PER_EPOCH] == pytest.approx(1.0)


def test_onecycle_peaks_at_the_optimizers_rate():
    assert max(rates(use="onecycle")) == pytest.approx(1.0)


@pytest.mark.parametrize("better", [True, False])
def test_plateau_lowers_the_rate_when_the_metric_stops_getting_better(better):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    table = LRScheduleTable(use="plateau", patience=1, factor=0.1)
    factory = make_rate(table, STEPS_PER_EPOCH, higher_is_better=better)
    assert factory is not None
    scheduler = factory(optimizer, STEPS)
    improving = [0.1, 0.2, 0.3, 0.4, 0.5]
    for value in improving if better else reversed(improving):
        scheduler.step(value)
    assert optimizer.param_groups[0]["lr"] == 1.0
    for _ in range(3):
        scheduler.step(0.3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_constant_rate_needs_no_scheduler():
    assert make_rate(LRScheduleTable(use="constant"), STEPS_PER_EPOCH) is None


@pytest.mark.parametrize("name", NAMES)
def test_every_short_name_is_a_scheduler_of_torch(name):
    needed = {"exponential": {"gamma": 0.9}, "step": {"step_size": 1}, "multistep": {"milestones": [1]}}
    needed["restarts"] = {"T_0": 1}
    assert check_rate(LRScheduleTable(use=name, **needed.get(name, {})), ()) == []


def test_a_class_of_torch_may_be_named_itself():
    assert rates(use="CosineAnnealingLR") == rates(use="cosine")


def test_what_torch_refuses_is_told_with_its_table():
    factory = make_rate(LRScheduleTable(use="restarts", T_0=0), STEPS_PER_EPOCH)
    assert factory is not None
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ConfigurationError, match=r"\[lr_schedule\] restarts cannot be made"):
        factory(optimizer, STEPS)
