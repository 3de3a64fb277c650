import pytest
import torch

from kdengine.losses import LogitMSE
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, tokens
from .behaviour import (
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
)


def expected(student, teacher):
    return torch.tensor(
        [sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
         for s, t in zip(student.tolist(), teacher.tolist(), strict=True)],
        dtype=torch.float64,
    )  # fmt: skip


@pytest.mark.parametrize("center", [False, True])
def test_the_kit_accepts_every_option(center):
    check_loss(LogitMSE, center=center)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(LogitMSE, sample=tokens(labelled=False))


def test_per_item_is_the_mean_square_over_classes():
    student, teacher = logits(), logits(seed=1)
    torch.testing.assert_close(LogitMSE().per_item(batch_of(student, teacher)), expected(student, teacher))


def test_centred_a_common_shift_costs_nothing():
    student = logits()
    loss = LogitMSE(center=True)
    torch.testing.assert_close(loss.per_item(batch_of(student, student + 3.0)), torch.zeros(6).double())
    shifted = logits(seed=1) + torch.arange(6.0).double().unsqueeze(1)
    centred = [value - value.mean(-1, keepdim=True) for value in (student, shifted)]
    torch.testing.assert_close(loss.per_item(batch_of(student, shifted)), expected(*centred))


@pytest.mark.parametrize("center", [False, True])
def test_equal_logits_cost_nothing(center):
    assert_equality(LogitMSE(center=center), tolerance=0.0)


@pytest.mark.parametrize("center", [False, True])
def test_extreme_logits_are_finite(center):
    assert_finite_at_extremes(LogitMSE(center=center))


@pytest.mark.parametrize("center", [False, True])
def test_masked_classes_change_nothing(center):
    assert_masked_classes_change_nothing(LogitMSE(center=center))


def test_a_fit_lowers_it():
    assert_a_fit_lowers(LogitMSE())
