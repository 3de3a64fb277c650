import math

import pytest
import torch

import kdengine
from kdengine.losses import BCE, BinaryKL
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, tokens
from .behaviour import (
    INFINITE,
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def expected(student, teacher, temperature):
    """T^2 sum_v KL(Bernoulli(p_v) || Bernoulli(q_v))."""
    p, q = ([sigmoid(value / temperature) for value in row] for row in (teacher, student))
    terms = [a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in zip(p, q, strict=True)]
    return temperature**2 * sum(terms)


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(BinaryKL, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(BinaryKL, sample=tokens(labelled=False))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_per_item_is_the_sum_over_labels_times_the_square_of_the_temperature(temperature):
    student, teacher = logits(), logits(seed=1)
    values = BinaryKL(temperature).per_item(batch_of(student, teacher)).tolist()
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    assert values == pytest.approx([expected(s, t, temperature) for s, t in pairs], abs=1e-12)


def test_two_labels_by_hand():
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    value, gradient = evaluated(BinaryKL(), student, teacher)
    assert float(value) == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert gradient.tolist() == [pytest.approx([0.25, 0.0])]


def test_its_gradient_is_that_of_bce_times_the_number_of_labels():
    student, teacher = logits(), logits(seed=1)
    gradients = [evaluated(loss(2.0), student, teacher)[1] for loss in (BinaryKL, BCE)]
    torch.testing.assert_close(gradients[0], 5 * gradients[1])


def test_near_its_teacher_it_keeps_its_digits_in_float32():
    teacher = logits()
    student = teacher + 1e-3 * logits(seed=1)
    exact = evaluated(BinaryKL(20.0), student.float().double(), teacher.float().double())
    for got, wanted in zip(evaluated(BinaryKL(20.0), student.float(), teacher.float()), exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=5e-3, atol=0.0)  # of 1e-6: naively nothing of it is left


def test_equal_logits_cost_nothing():
    assert_equality(BinaryKL(2.0), tolerance=0.0)


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(BinaryKL())


def test_masked_labels_change_nothing():
    assert_masked_classes_change_nothing(BinaryKL(2.0))


def test_a_label_that_the_teacher_alone_masks_is_a_no():
    student, teacher = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[INFINITE, 1.0]]).double()
    assert float(evaluated(BinaryKL(), student, teacher)[0]) == pytest.approx(math.log(2))


def test_a_bad_temperature_is_refused():
    with pytest.raises(
        kdengine.ConfigurationError, match="binary_kl: temperature must be a finite number above 0, got -1"
    ):
        BinaryKL(-1)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(BinaryKL())
