import math

import pytest
import torch

import kdengine
from kdengine.losses import KD, WSLD
from kdengine.testing import check_loss, tiny_run

from ..outputs import batch_of, logits, probabilities, tokens
from .behaviour import (
    INFINITE,
    LABELS,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
    softened,
)


def parts(student, teacher, own, temperature):
    """The factor and the soft cross-entropy (times T^2) of one row."""
    of_student, of_teacher = (-math.log(softened(row)[own]) for row in (student, teacher))
    p, q = softened(teacher, temperature), softened(student, temperature)
    soft = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
    return 1 - math.exp(-of_student / of_teacher), temperature**2 * soft


@pytest.mark.parametrize("options", [{}, {"temperature": 4.0}], ids=str)
@pytest.mark.parametrize("sample", [None, tokens(True)], ids=["images", "tokens"])
def test_the_kit_accepts_every_option(options, sample):
    check_loss(WSLD, sample=sample, **options)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_per_item_is_the_weighted_cross_entropy_of_the_paper(temperature):
    student, teacher = logits(), logits(seed=1)
    rows = list(zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True))
    values = WSLD(temperature).per_item(batch_of(student, teacher, LABELS)).tolist()
    wanted = [math.prod(parts(*row, temperature)) for row in rows]
    assert values == pytest.approx(wanted, abs=1e-12)


def test_two_classes_by_hand():
    student = torch.tensor([[0.0, 0.0]]).double()  # L_s = log 2
    teacher = torch.tensor([[0.0, math.log(3.0)]]).double()  # L_t = log 4 of class 0: twice as much
    value, _ = evaluated(WSLD(1.0), student, teacher, torch.tensor([0]))
    assert float(value) == pytest.approx((1 - math.exp(-0.5)) * math.log(2))


def test_the_factor_is_a_constant_for_the_gradient():
    student, teacher = logits(), logits(seed=1)
    _, gradient = evaluated(WSLD(2.0), student, teacher)
    for s, t, own, got in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), gradient.tolist(), strict=True):
        factor, _ = parts(s, t, own, 2.0)
        p, q = softened(t, 2.0), softened(s, 2.0)
        assert got == pytest.approx([factor * 2.0 * (b - a) for a, b in zip(p, q, strict=True)], abs=1e-12)


def test_a_student_that_gives_what_its_teacher_gives_gets_no_gradient_but_nothing_is_claimed_of_the_value():
    teacher = logits()
    _, gradient = evaluated(WSLD(), teacher, teacher)
    assert float(gradient.abs().max()) < 1e-12
    assert WSLD().at_equality is None


def test_a_sure_student_is_left_alone_and_one_of_a_sure_teacher_is_not():
    sure, unsure = torch.tensor([[300.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    labels = torch.tensor([0])
    assert float(evaluated(WSLD(1.0), sure, unsure, labels)[0]) == 0.0
    assert float(evaluated(WSLD(1.0), unsure, sure, labels)[0]) == pytest.approx(math.log(2))
    assert float(evaluated(WSLD(1.0), sure, sure, labels)[0]) == 0.0


def test_a_fine_ratio_keeps_its_digits_in_float32():
    student, teacher = logits(), logits(seed=1)
    for value in (student, teacher):
        value[range(6), LABELS] += 25.0
    exact = evaluated(WSLD(), student, teacher)
    for got, wanted in zip(evaluated(WSLD(), student.float(), teacher.float()), exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-7)


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(WSLD())


def test_masked_classes_change_nothing():
    assert_masked_classes_change_nothing(WSLD())


def test_own_classes_that_are_masked_are_no_nan():
    student, teacher = logits(), logits(seed=1)
    student[:, 1] = teacher[:3, 1] = INFINITE
    value, gradient = evaluated(WSLD(), student[:3], teacher[:3], torch.ones(3, dtype=torch.int64))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


def test_probabilities_as_labels_are_refused():
    with pytest.raises(kdengine.ConfigurationError, match="wsld needs class ids"):
        WSLD().valid(probabilities(4, torch.Generator().manual_seed(0)))


def test_a_bad_temperature_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="wsld: temperature must be a finite number above 0, got -2"):
        WSLD(-2)


def test_a_fit_brings_the_student_nearer_to_its_teacher():
    history = tiny_run({"own": WSLD(), "kd": KD()}, weights={"kd": 1e-9}, epochs=6).result.history
    assert history[-1]["kd"] < 0.9 * history[0]["kd"]
