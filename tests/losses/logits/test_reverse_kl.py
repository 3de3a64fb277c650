import math

import pytest
import torch

import kdengine
from kdengine.losses import ReverseKL
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
    """T^2 sum_v p_s (log p_s - log p_t)."""
    p, q = softened(student, temperature), softened(teacher, temperature)
    return temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(ReverseKL, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(ReverseKL, sample=tokens(labelled=False))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_per_item_is_the_divergence_of_the_student_from_the_teacher(temperature):
    student, teacher = logits(), logits(seed=1)
    values = ReverseKL(temperature).per_item(batch_of(student, teacher)).tolist()
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    assert values == pytest.approx([expected(s, t, temperature) for s, t in pairs], abs=1e-12)


def test_two_classes_by_hand():
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    value = float(ReverseKL().per_item(batch_of(student, teacher)))
    assert value == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_equal_logits_cost_nothing():
    assert_equality(ReverseKL(2.0))


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(ReverseKL())


def test_masked_classes_change_nothing():
    assert_masked_classes_change_nothing(ReverseKL(2.0))


def test_a_class_that_the_student_alone_masks_is_no_nan():
    student, teacher = logits(), logits(seed=1)
    student[:, 2] = INFINITE
    value, gradient = evaluated(ReverseKL(), student, teacher)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), True, "hot"])
def test_a_bad_temperature_is_refused(temperature):
    with pytest.raises(
        kdengine.ConfigurationError, match="reverse_kl: temperature must be a finite number above 0, got"
    ):
        ReverseKL(temperature)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(ReverseKL())
