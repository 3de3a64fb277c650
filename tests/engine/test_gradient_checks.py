"""What trains nothing is named once."""

import warnings

import pytest
from torch import nn

import kdengine
from kdengine.losses import CE, KD, Hint
from tests.engine.common import engine, items, mlp


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.spare = nn.Linear(12, 8), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(x).relu())


def fitted(student, **options):
    return engine(student, **options).fit(kdengine.loader(items(), 8), epochs=2)


def test_parameters_that_no_loss_reaches_are_named_once():
    with pytest.warns(UserWarning, match=r"2 of the student's 6 .*'spare\.weight', 'spare\.bias'") as told:
        fitted(TwoHeads())
    assert len(told) == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"weights": {"kd": 0.0, "ce": 1.0}}, {"accumulate": 3}, {"precision": "bf16"}],
    ids=["plain", "a loss of weight 0", "accumulation", "bf16"],
)
def test_nothing_is_said_where_everything_trains(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(mlp(), **options)


def test_a_stage_of_hints_alone_says_nothing_of_what_comes_after_them():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(mlp(), losses={"hint": Hint("1", "1")}, weights={})


def test_frozen_parameters_are_not_named():
    student = TwoHeads()
    student.spare.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(student)


def test_a_step_that_is_skipped_leaves_the_look_to_the_next():
    class Skip:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_start(self, context):
            return kdengine.Decision.SKIP if context.step == 0 else None

    with pytest.warns(UserWarning, match=r"spare\.weight"):
        fitted(TwoHeads(), plugins=[Skip()])


@pytest.mark.parametrize("how", ["frozen", "detached"])
def test_features_through_which_nothing_flows_are_named_once(how):
    student = TwoHeads()
    del student.spare
    losses = {"hint": Hint("body", "0"), "kd": KD(), "ce": CE()}
    if how == "frozen":
        student.body.requires_grad_(False)
    else:
        body = student.body.forward
        student.body.forward = lambda x: body(x).detach()
    with pytest.warns(UserWarning, match="no gradient") as told:
        fitted(student, losses=losses, weights={})
    assert sum("features 'body'" in str(each.message) for each in told) == 1


def test_a_feature_that_is_trained_is_not_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(mlp(), losses={"hint": Hint("1", "1"), "ce": CE()}, weights={})
