import math

import pytest
import torch

import kdengine
from kdengine.losses import TVD
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, tokens
from .behaviour import (
    INFINITE,
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
    softened,
)


def expected(student, teacher, temperature):
    """T^2 / 2 sum_v |p_v - q_v|."""
    p, q = softened(teacher, temperature), softened(student, temperature)
    return temperature**2 / 2 * sum(abs(a - b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(TVD, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(TVD, sample=tokens(labelled=False))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_per_item_is_half_the_sum_of_differences_times_the_square_of_the_temperature(temperature):
    student, teacher = logits(), logits(seed=1)
    values = TVD(temperature).per_item(batch_of(student, teacher)).tolist()
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    assert values == pytest.approx([expected(s, t, temperature) for s, t in pairs], abs=1e-12)


def test_two_classes_by_hand():
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    value, gradient = evaluated(TVD(), student, teacher)
    assert float(value) == pytest.approx(0.25)
    assert gradient.tolist() == [pytest.approx([0.75 * 0.25, -0.75 * 0.25])]


def test_disjoint_distributions_are_the_square_of_the_temperature_apart():
    student, teacher = torch.tensor([[0.0, INFINITE]]).double(), torch.tensor([[INFINITE, 0.0]]).double()
    value, gradient = evaluated(TVD(3.0), student, teacher)
    assert float(value) == 9.0
    assert torch.isfinite(gradient).all()


def test_equal_logits_cost_nothing():
    assert_equality(TVD(2.0), tolerance=0.0)


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(TVD())


def test_masked_classes_change_nothing():
    assert_masked_classes_change_nothing(TVD(2.0))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), True, "hot"])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(kdengine.ConfigurationError, match="tvd: temperature must be a finite number above 0, got"):
        TVD(temperature)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(TVD())
