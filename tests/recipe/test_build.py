from __future__ import annotations

import pytest
import torch
from torch import nn

from kdengine.api import ConfigurationError
from kdengine.engine.batching import to_batch
from kdengine.engine.feed import Feed
from kdengine.recipe.build import optimizer_factory
from kdengine.recipe.data import make_data
from kdengine.recipe.run import student_fit
from kdengine.recipe.teacher import teacher_fit, untrained_teacher

from .conftest import SMALL


@pytest.fixture
def net() -> nn.Module:
    return nn.ModuleDict({"hidden": nn.Linear(2, 3), "fc": nn.Linear(3, 4)})


def make(plan, net: nn.Module, **override):
    return optimizer_factory(plan.optimizer, plan.recipe.optimizer, **override)(list(net.named_parameters()))


def test_each_parameter_joins_the_first_group_that_matches_and_the_rest_the_last(plan_of, net):
    groups = "[{ match = '*.bias', weight_decay = 0.0 }, { match = 'fc.*', lr = 0.5 }]"
    plan = plan_of(SMALL, "optimizer={ use = 'sgd', lr = 0.1, momentum = 0.9 }", f"optimizer.groups={groups}")
    optimizer = make(plan, net)
    sizes = [sorted(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    assert sizes == [[3, 4], [12], [6]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.1]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9] * 3


def test_a_pattern_that_matches_nothing_is_refused(plan_of, net):
    plan = plan_of(SMALL, "optimizer.groups=[{ match = 'bakcbone.*', lr = 0.1 }]")
    with pytest.raises(ConfigurationError, match=r"optimizer.groups: no parameter's name matches 'bakcbone\.\*'"):
        make(plan, net)


def test_groups_that_take_everything_leave_no_empty_last_group(plan_of, net):
    plan = plan_of(SMALL, "optimizer.groups=[{ match = '*', lr = 0.2 }]")
    assert [group["lr"] for group in make(plan, net).param_groups] == [0.2]


def test_an_overriding_rate_yields_to_that_of_a_group(plan_of, net):
    plan = plan_of(SMALL, "optimizer.groups=[{ match = 'fc.*', lr = 0.5 }]")
    assert [group["lr"] for group in make(plan, net, lr=0.3).param_groups] == [0.5, 0.3]


def test_what_the_optimizer_refuses_is_told_with_its_table(plan_of, net):
    with pytest.raises(ConfigurationError, match=r"\[optimizer\] adam cannot be made: .*-0\.1"):
        make(plan_of(SMALL, "optimizer.lr=-0.1"), net)


def assembled(plan, *, alone: bool = False, teacher: bool = True):
    data = make_data(plan)
    untrained = untrained_teacher(plan, data) if teacher else None
    engine, loader = student_fit(plan, data, untrained, seed=0, out=None, loggers=[], alone=alone)
    return engine, engine.assemble(Feed(loader, plan.recipe.train.accumulate, to_batch), epochs=3)


def test_the_student_alone_has_the_losses_without_a_teacher_at_full_weight(plan_of):
    engine, fit = assembled(plan_of(), alone=True)
    assert list(fit.objective.losses) == ["ce"]
    assert engine.weights == {}
    assert list(assembled(plan_of())[1].objective.losses) == ["kd", "ce"]


def test_the_student_alone_begins_with_the_same_weights_and_takes_as_many_steps(plan_of):
    alone, fit = assembled(plan_of(), alone=True)
    distilled, other = assembled(plan_of())
    assert fit.steps == other.steps == 15
    for ours, theirs in zip(alone.student.parameters(), distilled.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_settings_of_the_recipe_reach_the_engine(plan_of):
    plan = plan_of(
        SMALL,
        "train={ epochs = 1, clip = 0.5, ema = 0.9, accumulate = 2, precision = 'bf16', nonfinite = 'skip' }",
        "evaluate.monitor=agreement",
    )
    _, fit = assembled(plan)
    assert (fit.settings.clip, fit.settings.ema, fit.feed.accumulate) == (0.5, 0.9, 2)
    assert (fit.settings.precision, fit.settings.nonfinite, fit.settings.monitor) == ("bf16", "skip", "agreement")
    assert fit.feed.steps_per_epoch == 3


def test_plateau_watches_the_monitored_metric_in_its_own_direction(plan_of):
    def mode(monitor: str) -> str:
        watched = ["evaluate.metrics=['top1', 'calibration_error']", f"evaluate.monitor={monitor}"]
        return assembled(plan_of(SMALL, *watched, "lr_schedule.use=plateau"))[1].lr_scheduler.mode

    assert (mode("top1"), mode("calibration_error")) == ("max", "min")


def test_a_plateau_follows_the_direction_that_the_recipe_gives(plan_of):
    plan = plan_of(SMALL, "evaluate.monitor_mode=min", "evaluate.monitor=top1", "lr_schedule.use=plateau")
    assert assembled(plan)[1].lr_scheduler.mode == "min"


def test_the_teacher_trains_on_labels_alone_with_its_own_rate_and_optimizer(plan_of):
    plan = plan_of(SMALL, "teacher.train.optimizer={ use = 'sgd', momentum = 0.5 }", "teacher.train.batch_size=500")
    data = make_data(plan)
    (module,), (model,) = untrained_teacher(plan, data).modules, plan.teacher.models
    engine, loader = teacher_fit(plan, data, model, module, out=None, loggers=[])
    fit = engine.assemble(Feed(loader, 1, to_batch))
    assert list(fit.objective.losses) == ["ce"]
    assert list(fit.metrics) == ["top1"]
    assert isinstance(fit.optimizer, torch.optim.SGD)
    assert fit.optimizer.param_groups[0]["lr"] == 0.01
    assert fit.optimizer.param_groups[0]["momentum"] == 0.5
    assert len(loader) == 3


COUNTED = """
import kdengine
from kdengine.losses import LogitMSE

kdengine_hook_version = 1


class Counted(LogitMSE):
    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = items


@kdengine.hookimpl
def kdengine_losses():
    return {"counted": Counted}
"""


def test_a_loss_gets_the_number_of_items_unless_the_recipe_gives_it(plan_of, tmp_path):
    (tmp_path / "counted.py").write_text(COUNTED)
    plugins = [str(tmp_path / "counted.py")]
    _, fit = assembled(plan_of(SMALL, "losses.counted={}", plugins=plugins))
    assert fit.objective.losses["counted"].items == len(fit.feed.loader.dataset)
    _, fit = assembled(plan_of(SMALL, "losses.counted={ items = 7 }", plugins=plugins))
    assert fit.objective.losses["counted"].items == 7


def test_a_memory_bank_has_a_row_for_each_item_of_the_training_set(plan_of):
    _, fit = assembled(plan_of(SMALL, "losses.crd={ feat_dim = 4, nce_k = 8 }"))
    items = len(fit.feed.loader.dataset)
    assert fit.objective.losses["crd"].student_bank.embeddings.shape == (items, 4)
