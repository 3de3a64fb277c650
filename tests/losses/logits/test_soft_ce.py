import math

import pytest
import torch

import kdengine
from kdengine.losses import KD, SoftCE
from kdengine.losses.logits.standardize import standardize
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, tokens
from .behaviour import (
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
    softened,
)


def expected(student, teacher, temperature):
    """-T^2 sum_v p_v log q_v."""
    p, q = softened(teacher, temperature), softened(student, temperature)
    return -(temperature**2) * sum(a * math.log(b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5}, {"standardize": True}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(SoftCE, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(SoftCE, sample=tokens(labelled=False))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_per_item_is_the_cross_entropy_times_the_square_of_the_temperature(temperature):
    student, teacher = logits(), logits(seed=1)
    values = SoftCE(temperature).per_item(batch_of(student, teacher)).tolist()
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    assert values == pytest.approx([expected(s, t, temperature) for s, t in pairs], abs=1e-12)


def test_two_classes_by_hand():
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    value = float(SoftCE(1.0).per_item(batch_of(student, teacher)))
    assert value == pytest.approx(-0.5 * (math.log(0.75) + math.log(0.25)))


def test_the_gradient_is_that_of_kd():
    student, teacher = logits(), logits(seed=1)
    _, gradient = evaluated(SoftCE(3.0), student, teacher)
    assert torch.equal(gradient, evaluated(KD(3.0), student, teacher)[1])


def test_standardised_the_entropy_is_that_of_standardised_logits():
    student, teacher = logits(), logits(seed=1)
    option = evaluated(SoftCE(standardize=True), student, teacher)[0]
    torch.testing.assert_close(option, evaluated(SoftCE(), standardize(student), standardize(teacher))[0])


def test_the_weighted_sum_ignores_rows_of_no_weight():
    student, teacher = logits(2), logits(2, seed=1)
    alone = SoftCE().per_item(batch_of(student, teacher))[0]
    student[1] = teacher[1] = torch.nan
    total, sums = SoftCE().weighted_sum(batch_of(student, teacher), {"loss": torch.tensor([0.5, 0.0]).double()})
    torch.testing.assert_close(total, 0.5 * alone)
    assert torch.equal(total, sums["loss"])


@pytest.mark.parametrize("option", [False, True])
def test_equal_logits_are_the_minimum(option):
    assert_equality(SoftCE(standardize=option))


@pytest.mark.parametrize("option", [False, True])
def test_extreme_logits_are_finite(option):
    assert_finite_at_extremes(SoftCE(standardize=option))


@pytest.mark.parametrize("option", [False, True])
def test_masked_classes_change_nothing(option):
    assert_masked_classes_change_nothing(SoftCE(standardize=option))


def test_a_bad_temperature_is_refused():
    with pytest.raises(
        kdengine.ConfigurationError, match="soft_ce: temperature must be a finite number above 0, got 0"
    ):
        SoftCE(0)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(SoftCE())
