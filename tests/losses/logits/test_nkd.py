import math

import pytest
import torch

import kdengine
from kdengine.losses import NKD
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, probabilities, tokens
from .behaviour import (
    INFINITE,
    LABELS,
    assert_a_fit_lowers,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
    softened,
)


def expected(student, teacher, own, temperature, gamma):
    """-t_y log s_y and -gamma T^2 sum of N(t) log N(s) over the other classes, of one row."""
    target = -softened(teacher)[own] * math.log(softened(student)[own])
    t, s = (softened([value for at, value in enumerate(row) if at != own], temperature) for row in (teacher, student))
    return target, -gamma * temperature**2 * sum(a * math.log(b) for a, b in zip(t, s, strict=True))


def values_of(loss, student, teacher, labels=LABELS):
    values = loss.per_item(batch_of(student, teacher, labels))
    return [values[term].tolist() for term in loss.terms]


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "gamma": 0.5}, {"ignore_index": 0}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(NKD, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(NKD, sample=tokens(labelled=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_terms_are_those_of_the_paper(temperature):
    student, teacher = logits(), logits(seed=1)
    got = values_of(NKD(temperature, gamma=0.7), student, teacher)
    rows = zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True)
    wanted = zip(*(expected(*row, temperature, 0.7) for row in rows), strict=True)
    for values, of_paper in zip(got, wanted, strict=True):
        assert values == pytest.approx(list(of_paper), abs=1e-12)


def test_three_classes_by_hand():
    student = torch.tensor([[math.log(2.0), 0.0, 0.0]]).double()  # own class 1/2, others 1/2 and 1/2
    teacher = torch.tensor([[math.log(12.0), math.log(3.0), 0.0]]).double()  # own class 3/4, others 3/4 and 1/4
    target, others = values_of(NKD(), student, teacher, torch.tensor([0]))
    assert target == pytest.approx([0.75 * math.log(2)])
    assert others == pytest.approx([1.5 * math.log(2)])


def test_the_gradient_at_equality_is_that_of_the_target_alone():
    teacher = logits()
    _, gradient = evaluated(NKD(temperature=2.0), teacher, teacher)
    for row, own, got in zip(teacher.tolist(), LABELS.tolist(), gradient.tolist(), strict=True):
        p = softened(row)
        assert got == pytest.approx([p[own] * (q - (at == own)) for at, q in enumerate(p)], abs=1e-12)
    assert NKD().at_equality is None


def test_a_sure_teacher_keeps_its_digits_in_half_precision_and_float32():
    student, teacher = logits(), logits(seed=1)
    teacher[range(6), LABELS] += 30.0
    exact = evaluated(NKD(1.0), student, teacher)
    for got, wanted in zip(evaluated(NKD(1.0), student.float(), teacher.float()), exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_unlabelled_items_do_not_count_and_are_finite():
    labels = torch.tensor([0, -100, 2, 3, -100, 1])
    loss, batch = NKD(), batch_of(logits(), logits(seed=1), labels)
    assert loss.valid(batch).tolist() == [True, False, True, True, False, True]
    assert all(torch.isfinite(value).all() for value in loss.per_item(batch).values())


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(NKD())


def test_masked_classes_change_nothing():
    assert_masked_classes_change_nothing(NKD(2.0))


def test_an_own_class_without_others_costs_nothing_beside_the_target():
    for classes in (1, 3):
        student, teacher = logits(2, classes), logits(2, classes, seed=1)
        student[:, 1:] = teacher[:, 1:] = INFINITE
        value, gradient = evaluated(NKD(), student, teacher, torch.tensor([0, 0]))
        assert float(value) == 0.0
        assert not gradient.any()


def test_an_own_class_that_both_mask_costs_nothing_as_the_target():
    student, teacher = logits(), logits(seed=1)
    student[:, 1] = teacher[:, 1] = INFINITE
    value, gradient = evaluated(NKD(), student, teacher, torch.ones(6, dtype=torch.int64))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert values_of(NKD(), student, teacher, torch.ones(6, dtype=torch.int64))[0] == [0.0] * 6


def test_probabilities_as_labels_are_refused():
    batch = probabilities(4, torch.Generator().manual_seed(0))
    for method in (NKD().valid, NKD().per_item):
        with pytest.raises(kdengine.ConfigurationError, match=r"nkd needs class ids .* a tensor \(4, 5\) float64"):
            method(batch)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "nkd needs labels, but the loader gives none"),
        (torch.tensor([[0], [1]]), r"a class id for each row of logits, \(2,\), but the labels are a tensor \(2, 1\)"),
        (torch.tensor([0, 5]), "labels from 0 to 4 .* got 5"),
        (torch.tensor([-1, 0]), "labels from 0 to 4 .* got -1"),
    ],
    ids=str,
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(kdengine.ConfigurationError, match=message):
        NKD().per_item(batch_of(logits(2), logits(2), labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "a temperature above 0, got 0"),
        ({"gamma": -1.0}, "a gamma of at least 0, got -1.0"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(options, message):
    with pytest.raises(kdengine.ConfigurationError, match=f"nkd needs {message}"):
        NKD(**options)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(NKD(), terms=NKD.terms)
