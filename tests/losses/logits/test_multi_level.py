import math

import pytest
import torch

import kdengine
from kdengine.losses import MultiLevel
from kdengine.losses.logits.multi_level import gram_distance
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


def gram(rows):
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]


def squares(one, other):
    pairs = zip(one, other, strict=True)
    return sum((a - b) ** 2 for x, y in pairs for a, b in zip(x, y, strict=True))


def expected(student, teacher, temperatures):
    """Instance (times T^2), batch and class level, summed over the temperatures."""
    sums = [0.0, 0.0, 0.0]
    for temperature in temperatures:
        p, q = ([softened(row, temperature) for row in rows] for rows in (student.tolist(), teacher.tolist()))
        divergences = [sum(b * math.log(b / a) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
        columns = [[list(column) for column in zip(*rows, strict=True)] for rows in (p, q)]
        levels = (
            temperature**2 * sum(divergences) / len(p),
            squares(gram(p), gram(q)) / len(p),
            squares(*map(gram, columns)) / len(p[0]),
        )
        sums = [total + level for total, level in zip(sums, levels, strict=True)]
    return sums


def values_of(loss, student, teacher):
    values = loss.value(batch_of(student, teacher))
    return [float(values[term]) for term in loss.terms]


@pytest.mark.parametrize(
    "options", [{}, {"temperatures": [1.0]}, {"standardize": True}, {"standardize": "all"}], ids=str
)
def test_the_kit_accepts_every_option(options):
    check_loss(MultiLevel, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(MultiLevel, sample=tokens(labelled=False))


@pytest.mark.parametrize("temperatures", [(1.0,), (2.0, 3.0, 4.0, 5.0, 6.0)])
def test_the_terms_are_those_of_the_paper(temperatures):
    student, teacher = logits(), logits(seed=1)
    got = values_of(MultiLevel(temperatures), student, teacher)
    assert got == pytest.approx(expected(student, teacher, temperatures), abs=1e-12)


def test_two_items_by_hand():
    student = torch.tensor([[0.0, INFINITE], [0.0, INFINITE]]).double()  # p = (1, 0) twice: all products are 1
    teacher = torch.tensor([[0.0, 0.0], [0.0, 0.0]]).double()  # q = (1/2, 1/2) twice: all products are 1/2
    _, batch, classes = values_of(MultiLevel([1.0]), student, teacher)
    assert batch == pytest.approx(4 * 0.25 / 2)
    assert classes == pytest.approx((1.5**2 + 3 * 0.5**2) / 2)  # [[2, 0], [0, 0]] less [[.5, .5], [.5, .5]]


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5)])
def test_the_distance_of_gram_matrices_is_the_same_by_either_side(shape):
    x, y = (logits(*shape, seed=seed).requires_grad_() for seed in (0, 1))
    plain = (x @ x.t() - y @ y.t()).square().sum()
    torch.testing.assert_close(gram_distance(x, y), plain)
    for got, wanted in zip(
        torch.autograd.grad(gram_distance(x, y), [x, y]), torch.autograd.grad(plain, [x, y]), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_rows_of_tokens_are_items():
    student, teacher = logits(), logits(seed=1)
    dense = [value.view(2, 3, 5) for value in (student, teacher)]
    assert values_of(MultiLevel(), *dense) == values_of(MultiLevel(), student, teacher)


def test_standardised_logits_are_seen_by_the_soft_term_alone():
    student, teacher = logits(), logits(seed=1)
    instance, *others = values_of(MultiLevel(standardize=True), student, teacher)
    moved, *moved_others = values_of(MultiLevel(standardize=True), 3 * student + 1, teacher)
    assert moved == pytest.approx(instance, rel=1e-5)
    assert others == values_of(MultiLevel(), student, teacher)[1:]
    assert moved_others == values_of(MultiLevel(), 3 * student + 1, teacher)[1:] != others


def test_standardised_logits_are_seen_by_all_levels_where_that_is_asked_for():
    student, teacher = logits(), logits(seed=1)
    plain = values_of(MultiLevel(standardize="all"), student, teacher)
    assert values_of(MultiLevel(standardize="all"), 3 * student + 1, teacher) == pytest.approx(plain, rel=1e-5)
    assert plain[0] == values_of(MultiLevel(standardize=True), student, teacher)[0]


@pytest.mark.parametrize(("given", "meant"), [(1, True), (0, False)])
def test_numbers_are_taken_for_what_they_equal(given, meant):
    student, teacher = logits(), logits(seed=1)
    found = [values_of(MultiLevel(standardize=standardize), student, teacher) for standardize in (given, meant)]
    assert found[0] == found[1]


def test_an_unknown_level_to_standardise_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="multi_level: standardize must be False, True or 'all'"):
        MultiLevel(standardize="instance")


@pytest.mark.parametrize("standardize", [False, True, "all"])
def test_equal_logits_cost_nothing(standardize):
    assert_equality(MultiLevel(standardize=standardize))


@pytest.mark.parametrize("standardize", [False, True, "all"])
def test_extreme_logits_are_finite(standardize):
    assert_finite_at_extremes(MultiLevel(standardize=standardize))


def test_masked_classes_are_no_nan():
    student, teacher = logits(), logits(seed=1)
    student[:, 1] = teacher[:, 1] = INFINITE
    value, gradient = evaluated(MultiLevel(), student, teacher)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("temperatures", [[], 4.0, "4"])
def test_temperatures_that_are_no_list_are_refused(temperatures):
    with pytest.raises(kdengine.ConfigurationError, match="multi_level needs temperatures as a list"):
        MultiLevel(temperatures)


def test_a_bad_temperature_is_refused():
    with pytest.raises(
        kdengine.ConfigurationError, match="multi_level: each of temperatures must be a finite number above 0, got 0"
    ):
        MultiLevel([2.0, 0])


def test_a_fit_lowers_it():
    assert_a_fit_lowers(MultiLevel([1.0, 2.0]), terms=MultiLevel.terms)
