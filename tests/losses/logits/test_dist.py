import math

import pytest
import torch

import kdengine
from kdengine.losses import DIST
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, tokens
from .behaviour import (
    INFINITE,
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    evaluated,
    softened,
)


def correlation(x, y):
    """Pearson's, by its definition."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    spread = [sum((a - mean) ** 2 for a in row) for row, mean in ((x, mean_x), (y, mean_y))]
    return covariance / math.sqrt(spread[0] * spread[1])


def expected(student, teacher, temperature):
    """T^2 times the mean of 1 - correlation over rows and over columns."""
    p, q = ([softened(row, temperature) for row in rows] for rows in (student.tolist(), teacher.tolist()))
    columns = zip(zip(*p, strict=True), zip(*q, strict=True), strict=True)
    means = (
        sum(1 - correlation(x, y) for x, y in pairs) / len(pairs)
        for pairs in (list(zip(p, q, strict=True)), list(columns))
    )
    return [temperature**2 * mean for mean in means]


def values_of(loss, student, teacher):
    values = loss.value(batch_of(student, teacher))
    return [float(values[term]) for term in loss.terms]


@pytest.mark.parametrize("options", [{}, {"temperature": 4.0, "beta": 2.0, "gamma": 0.5}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(DIST, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(DIST, sample=tokens(labelled=False))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_terms_are_those_of_the_paper(temperature):
    student, teacher = logits(), logits(seed=1)
    inter, intra = expected(student, teacher, temperature)
    got = values_of(DIST(temperature, beta=2.0, gamma=0.5), student, teacher)
    assert got == pytest.approx([2.0 * inter, 0.5 * intra], abs=1e-12)


def test_opposite_rankings_are_the_farthest_apart():
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    assert values_of(DIST(), student, -student) == pytest.approx([2.0, 2.0])


def test_a_linear_change_of_the_probabilities_costs_nothing():
    teacher = logits()
    student = (0.5 * teacher.softmax(-1) + 0.1).log()  # sums to 1 again
    assert values_of(DIST(), student, teacher) == pytest.approx([0.0, 0.0], abs=1e-12)


def test_for_one_item_the_classes_cost_nothing():
    inter, intra = values_of(DIST(), logits(1), logits(1, seed=1))
    assert inter > 0
    assert intra == 0.0


def test_rows_of_tokens_are_items():
    student, teacher = logits(), logits(seed=1)
    dense = [value.view(2, 3, 5) for value in (student, teacher)]
    assert values_of(DIST(), *dense) == values_of(DIST(), student, teacher)


def test_a_side_that_does_not_vary_is_uncorrelated_and_two_agree():
    flat, teacher = torch.zeros(6, 5).double(), logits()
    value, gradient = evaluated(DIST(), flat, teacher)
    assert float(value) == 2.0
    assert not gradient.any()
    assert values_of(DIST(), flat, flat) == [0.0, 0.0]


def test_improbable_classes_keep_their_digits_in_float32():
    student, teacher = logits(), logits(seed=1)
    for value in (student, teacher):
        value[:, 3] -= 60.0
    exact = evaluated(DIST(), student, teacher)
    for got, wanted in zip(evaluated(DIST(), student.float(), teacher.float()), exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-6)


def test_equal_logits_cost_nothing():
    assert_equality(DIST(4.0))


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(DIST())


def test_masked_classes_are_no_nan():
    student, teacher = logits(), logits(seed=1)
    student[:, 1] = teacher[:, 1] = INFINITE
    student[0, 2] = INFINITE
    value, gradient = evaluated(DIST(), student, teacher)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "a temperature above 0, got 0.0"),
        ({"beta": -1.0}, "a beta of at least 0, got -1.0"),
        ({"gamma": "much"}, "a gamma of at least 0, got 'much'"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(options, message):
    with pytest.raises(kdengine.ConfigurationError, match=f"dist needs {message}"):
        DIST(**options)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(DIST(), terms=DIST.terms)
