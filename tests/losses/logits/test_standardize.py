import math

import pytest
import torch

from kdengine.losses import DIST, DKD, JSD, KD, NKD, TVD, WSLD, ReverseKL
from kdengine.losses.logits.standardize import standardize
from kdengine.testing import check_loss

from ..outputs import batch_of, logits
from .behaviour import (
    INFINITE,
    LABELS,
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
    total_of,
)

LOSSES = [KD, ReverseKL, JSD, TVD, DKD, NKD, DIST, WSLD]
CLAIMING = [loss for loss in LOSSES if loss.at_equality is not None]


def expected(row):
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row))
    return [(value - mean) / (deviation + 1e-7) for value in row]


def test_logits_have_mean_zero_and_the_populations_deviation_one():
    values = logits()
    for row, got in zip(values.tolist(), standardize(values).tolist(), strict=True):
        assert got == pytest.approx(expected(row), abs=1e-12)


def test_by_hand():
    root = math.sqrt(5)  # of the mean of 9, 1, 1 and 9
    got = standardize(torch.tensor([[-3.0, -1.0, 1.0, 3.0]]).double())[0].tolist()
    assert got == pytest.approx([-3 / root, -1 / root, 1 / root, 3 / root], rel=1e-7)


def test_half_precision_is_widened():
    assert standardize(logits().half()).dtype == torch.float32


def test_masked_classes_stay_masked_and_do_not_count():
    values = logits()
    masked = torch.cat([values, torch.full((6, 1), INFINITE).double()], 1)
    torch.testing.assert_close(standardize(masked)[:, :5], standardize(values))
    assert bool((standardize(masked)[:, 5] == INFINITE).all())


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_row_that_does_not_vary_gives_zeros_without_a_gradient(value, dtype):
    row = torch.full((2, 7), value, dtype=dtype, requires_grad=True)
    got = standardize(row)
    got.sum().backward()
    assert not got.any()
    assert not row.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_kit_accepts_the_option(loss):
    check_loss(loss, standardize=True)


def test_the_kit_accepts_it_beside_a_hard_term():
    check_loss(KD, standardize=True, hard_weight=0.4)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_sees_standardised_logits(loss):
    teacher = standardize(logits(seed=1))
    leaf = logits().requires_grad_()
    value, gradient = evaluated(loss(standardize=True), leaf.detach(), logits(seed=1))
    batch = batch_of(standardize(leaf), teacher, LABELS)
    total_of(loss(), batch).backward()
    torch.testing.assert_close(value, total_of(loss(), batch).detach())
    torch.testing.assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("loss", [KD, ReverseKL, JSD])
def test_nan_in_rows_of_no_weight_reaches_nothing(loss):
    student, teacher = logits(), logits(seed=1)
    weights = torch.ones(2, 3).double()
    weights[0, 1] = 0.0
    results = []
    for bad in (0.0, torch.nan):
        student[1] = teacher[1] = bad
        leaf = student.view(2, 3, 5).clone().requires_grad_()
        batch = batch_of(leaf, teacher.view(2, 3, 5))
        total, _ = loss(standardize=True).weighted_sum(batch, {"loss": weights})
        total.backward()
        results.append((total.detach(), leaf.grad))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


def test_the_hard_term_sees_the_students_own_logits():
    batch = batch_of(logits(), logits(seed=1), LABELS)
    apart, plain = (KD(hard_weight=0.4, standardize=option) for option in (True, False))
    torch.testing.assert_close(apart.per_item(batch)["hard"], plain.per_item(batch)["hard"])
    assert not torch.allclose(apart.per_item(batch)["soft"], plain.per_item(batch)["soft"])


@pytest.mark.parametrize("loss", LOSSES)
def test_shift_and_scale_of_either_side_change_nothing(loss):
    student, teacher = logits(), logits(seed=1)
    plain = evaluated(loss(standardize=True), student, teacher)[0]
    moved = evaluated(loss(standardize=True), 3.0 * student + 1.0, 0.5 * teacher - 2.0)[0]
    torch.testing.assert_close(moved, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", CLAIMING)
def test_equal_logits_keep_the_losses_promise(loss):
    assert_equality(loss(standardize=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_are_finite(loss):
    assert_finite_at_extremes(loss(standardize=True))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss is not DIST])
def test_masked_classes_change_nothing(loss):
    assert_masked_classes_change_nothing(loss(standardize=True))


def test_a_fit_lowers_it():
    assert_a_fit_lowers(KD(standardize=True))
