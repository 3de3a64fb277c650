import math

import pytest
import torch

import kdengine
from kdengine.losses import CE, Hard
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, tokens
from .behaviour import (
    assert_a_fit_lowers,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
    softened,
)


def expected(student, teacher, smoothing):
    """-(1 - e) log q_y - e/V sum_v log q_v, y where t is largest."""
    log_q = [math.log(value) for value in softened(student)]
    own = max(range(len(teacher)), key=teacher.__getitem__)
    return -(1 - smoothing) * log_q[own] - smoothing * sum(log_q) / len(log_q)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(Hard, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(Hard, sample=tokens(labelled=False))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_per_item_is_the_cross_entropy_with_the_teachers_decision(smoothing):
    student, teacher = logits(), logits(seed=1)
    values = Hard(smoothing).per_item(batch_of(student, teacher)).tolist()
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    assert values == pytest.approx([expected(s, t, smoothing) for s, t in pairs], abs=1e-12)


def test_two_classes_by_hand():
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]).double(), torch.tensor([[0.0, 0.1]]).double()
    value, gradient = evaluated(Hard(), student, teacher)
    assert float(value) == pytest.approx(math.log(4))
    assert gradient.tolist() == [pytest.approx([0.75, -0.75])]


def test_it_is_ce_with_the_decision_as_the_label():
    student, teacher = logits(), logits(seed=1)
    as_label = CE().per_item(batch_of(student, labels=teacher.argmax(-1)))
    torch.testing.assert_close(Hard().per_item(batch_of(student, teacher)), as_label)


def test_equal_logits_are_sharpened_so_nothing_is_claimed():
    teacher = logits()
    assert evaluated(Hard(), teacher, teacher)[1].any()
    assert Hard().at_equality is None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_extreme_logits_are_finite(smoothing):
    assert_finite_at_extremes(Hard(smoothing))


def test_masked_classes_change_nothing():
    assert_masked_classes_change_nothing(Hard())


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, None])
def test_a_bad_smoothing_is_refused(smoothing):
    with pytest.raises(
        kdengine.ConfigurationError,
        match="hard: label_smoothing must be a finite number of at least 0 and at most 1, got",
    ):
        Hard(smoothing)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(Hard())
