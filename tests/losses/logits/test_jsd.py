import math

import pytest
import torch

import kdengine
from kdengine.losses import JSD
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


def expected(student, teacher, temperature, beta):
    """T^2 (beta KL(p || m) + (1 - beta) KL(q || m)), m the mixture."""
    p, q = softened(teacher, temperature), softened(student, temperature)
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    to_mixture = [sum(a * math.log(a / c) for a, c in zip(d, m, strict=True)) for d in (p, q)]
    return temperature**2 * (beta * to_mixture[0] + (1 - beta) * to_mixture[1])


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0, "beta": 0.2}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(JSD, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(JSD, sample=tokens(labelled=False))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_per_item_is_the_generalised_divergence(temperature, beta):
    student, teacher = logits(), logits(seed=1)
    values = JSD(temperature, beta).per_item(batch_of(student, teacher)).tolist()
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    assert values == pytest.approx([expected(s, t, temperature, beta) for s, t in pairs], abs=1e-12)


def test_disjoint_distributions_cost_the_entropy_of_the_mixture():
    student, teacher = torch.tensor([[0.0, INFINITE]]).double(), torch.tensor([[INFINITE, 0.0]]).double()
    value, gradient = evaluated(JSD(), student, teacher)
    assert float(value) == pytest.approx(math.log(2))
    assert torch.isfinite(gradient).all()


def test_equal_logits_cost_nothing():
    assert_equality(JSD(2.0, beta=0.3), tolerance=0.0)


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(JSD())


def test_masked_classes_change_nothing():
    assert_masked_classes_change_nothing(JSD(2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "a temperature above 0, got -1.0"),
        ({"beta": 0.0}, "a beta strictly between 0 and 1, got 0.0"),
        ({"beta": 1}, "a beta strictly between 0 and 1, got 1"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(options, message):
    with pytest.raises(kdengine.ConfigurationError, match=f"jsd needs {message}"):
        JSD(**options)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(JSD())
