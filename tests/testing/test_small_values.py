"""The kit sees what is wrong with a loss whose values are far below 1."""

import pytest
import torch

import kdengine
from kdengine.testing.case import Case
from kdengine.testing.checks import CHECKS
from kdengine.testing.report import CheckFailed
from kdengine.testing.trial import DoesNotApply, Trial

SCALE = 1e-9


class Small(kdengine.Loss):
    """A squared error in units in which it is about 1e-9."""

    at_equality = "zero"

    def per_item(self, batch):
        student, teacher = (x if x.itemsize >= 4 else x.float() for x in (batch.student.logits, batch.teacher.logits))
        return SCALE * (student - teacher).square().mean(-1)


class SumsToNothing(Small):
    def weighted_sum(self, batch, weights):
        total, sums = super().weighted_sum(batch, weights)
        return 0.0 * total, {term: 0.0 * value for term, value in sums.items()}


class SpreadsItsMean(Small):
    def per_item(self, batch):
        values = super().per_item(batch)
        return values.mean().expand(values.shape)


class Vanishing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 0.9 * gradient


class WrongSlope(Small):
    def per_item(self, batch):
        return Vanishing.apply(super().per_item(batch))


class OffsetAtEquality(Small):
    def per_item(self, batch):
        return super().per_item(batch) + 1e-2 * SCALE


class SlopeAtEquality(Small):
    def per_item(self, batch):
        return super().per_item(batch) + 1e-2 * SCALE * batch.student.logits.float().mean(-1)


CHECK = {check.name: check for check in CHECKS}


def run(check, loss):
    CHECK[check].run(Case(loss.__name__, loss, {}), Trial(loss.__name__))


@pytest.mark.parametrize("check", ["weighted sum", "split", "processes", "gradient", "equality", "classes"])
def test_a_small_loss_that_is_right_passes(check):
    try:
        run(check, Small)
    except DoesNotApply:
        assert check == "classes"


@pytest.mark.parametrize(
    ("loss", "check"),
    [
        (SumsToNothing, "weighted sum"),
        (SpreadsItsMean, "split"),
        (WrongSlope, "gradient"),
        (OffsetAtEquality, "equality"),
        (SlopeAtEquality, "equality"),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_what_is_wrong_with_a_small_loss_is_seen(loss, check):
    with pytest.raises(CheckFailed):
        run(check, loss)


@pytest.mark.parametrize("small", [1e-3, 1e-9, 1e-12])
@pytest.mark.parametrize("tolerance", [1e-9, 1e-12, 0.0])
def test_zeros_are_not_close_to_small_values(small, tolerance):
    with pytest.raises(CheckFailed, match="differs by"):
        Trial("mine").close("the loss", [torch.zeros(2)], [torch.full((2,), small)], tolerance)


def test_what_rounding_leaves_is_close():
    one = torch.ones(3, dtype=torch.float64)
    trial = Trial("mine")
    trial.close("the loss", [1e-16 * one], [-1e-16 * one], 1e-12)
    trial.close("the gradient", [1e3 * one, 1e-13 * one], [1e3 * one, 0.0 * one], 1e-12)
    with pytest.raises(CheckFailed):
        trial.close("the state", [1e-16 * one], [-1e-16 * one], 0.0)
