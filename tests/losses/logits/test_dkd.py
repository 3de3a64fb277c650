import math

import pytest
import torch

import kdengine
from kdengine.losses import DKD, KD
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, probabilities, tokens
from .behaviour import (
    INFINITE,
    LABELS,
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
    softened,
)


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def expected(student, teacher, own, temperature):
    """T^2 times TCKD and NCKD of one row, Zhao et al. 2022, equations 1, 2 and 6."""
    p, q = softened(teacher, temperature), softened(student, temperature)
    target = kl([p[own], 1 - p[own]], [q[own], 1 - q[own]])
    others = [
        [value / (1 - row[own]) for at, value in enumerate(row) if at != own]
        for row in (p, q)
    ]  # fmt: skip
    return temperature**2 * target, temperature**2 * kl(*others)


def values_of(loss, student, teacher, labels=LABELS):
    values = loss.per_item(batch_of(student, teacher, labels))
    return [values[term].tolist() for term in loss.terms]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "alpha": 0.5, "beta": 2.0}, {"ignore_index": 0}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(DKD, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(DKD, sample=tokens(labelled=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_terms_are_those_of_the_paper(temperature):
    student, teacher = logits(), logits(seed=1)
    got = values_of(DKD(temperature, alpha=0.5, beta=3.0), student, teacher)
    rows = zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True)
    targets, others = zip(*(expected(*row, temperature) for row in rows), strict=True)
    assert got[0] == pytest.approx([0.5 * value for value in targets], abs=1e-12)
    assert got[1] == pytest.approx([3.0 * value for value in others], abs=1e-12)


def test_three_classes_by_hand():
    student = torch.tensor([[math.log(2.0), 0.0, 0.0]]).double()  # own class 1/2, others 1/2 and 1/2
    teacher = torch.tensor([[math.log(4.0), math.log(3.0), 0.0]]).double()  # own class 1/2, others 3/4 and 1/4
    target, others = values_of(DKD(1.0), student, teacher, torch.tensor([0]))
    assert target == pytest.approx([0.0])
    assert others == pytest.approx([8 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))])


def test_with_the_teachers_weight_it_is_kd():
    student, teacher = logits(), logits(seed=1)
    target, others = values_of(DKD(2.0, beta=1.0), student, teacher)
    shares = [1 - softened(row, 2.0)[own] for row, own in zip(teacher.tolist(), LABELS.tolist(), strict=True)]
    whole = KD(2.0).per_item(batch_of(student, teacher)).tolist()
    assert [t + share * o for t, share, o in zip(target, shares, others, strict=True)] == pytest.approx(whole)


def test_a_sure_teacher_keeps_its_digits_in_half_precision_and_float32():
    student, teacher = logits(), logits(seed=1)
    teacher[range(6), LABELS] += 30.0
    exact = evaluated(DKD(1.0), student, teacher)
    for got, wanted in zip(evaluated(DKD(1.0), student.float(), teacher.float()), exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_unlabelled_items_do_not_count_and_are_finite():
    labels = torch.tensor([0, -100, 2, 3, -100, 1])
    loss, batch = DKD(), batch_of(logits(), logits(seed=1), labels)
    assert loss.valid(batch).tolist() == [True, False, True, True, False, True]
    assert all(torch.isfinite(value).all() for value in loss.per_item(batch).values())


def test_equal_logits_cost_nothing():
    assert_equality(DKD())


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(DKD())


def test_masked_classes_change_nothing():
    assert_masked_classes_change_nothing(DKD(2.0))


def test_an_own_class_without_others_costs_nothing_beside_the_target():
    for classes in (1, 3):
        student, teacher = logits(2, classes), logits(2, classes, seed=1)
        student[:, 1:] = teacher[:, 1:] = INFINITE
        value, gradient = evaluated(DKD(), student, teacher, torch.tensor([0, 0]))
        assert float(value) == 0.0
        assert not gradient.any()


def test_probabilities_as_labels_are_refused():
    batch = probabilities(4, torch.Generator().manual_seed(0))
    for method in (DKD().valid, DKD().per_item):
        with pytest.raises(kdengine.ConfigurationError, match=r"dkd needs class ids .* a tensor \(4, 5\) float64"):
            method(batch)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "dkd needs labels, but the loader gives none"),
        (torch.tensor([[0], [1]]), r"a class id for each row of logits, \(2,\), but the labels are a tensor \(2, 1\)"),
        (torch.tensor([0, 5]), "labels from 0 to 4 .* got 5"),
        (torch.tensor([-1, 0]), "labels from 0 to 4 .* got -1"),
    ],
    ids=str,
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(kdengine.ConfigurationError, match=message):
        DKD().per_item(batch_of(logits(2), logits(2), labels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "a temperature above 0, got 0"),
        ({"alpha": -1.0}, "an alpha of at least 0, got -1.0"),
        ({"beta": float("inf")}, "a beta of at least 0, got inf"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(options, message):
    with pytest.raises(kdengine.ConfigurationError, match=f"dkd needs {message}"):
        DKD(**options)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(DKD(), terms=DKD.terms)
