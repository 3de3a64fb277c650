import math

import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.losses import CC
from kdengine.testing import check_loss

from ..outputs import batch_of, logits
from .common import AWKWARD, course, features, value_and_gradient


def correlations(rows, gamma, order):
    """The Taylor series of the Gaussian kernel of every two items on the unit sphere, Peng et al. 2019, section 3."""
    found = []
    for one in rows:
        for other in rows:
            sizes = math.hypot(*one) * math.hypot(*other)
            cosine = sum(x * y for x, y in zip(one, other, strict=True)) / sizes if sizes else 0.0
            terms = ((2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))
            found.append(math.exp(-2 * gamma) * sum(terms))
    return found


def expected(student, teacher, gamma=0.4, order=2):
    """1/n^2 ||C_T - C_S||^2."""
    pairs = zip(*(correlations(rows.tolist(), gamma, order) for rows in (student, teacher)), strict=True)
    return sum((s - t) ** 2 for s, t in pairs) / len(student) ** 2


@pytest.mark.parametrize("options", [{}, {"gamma": 1.5}, {"order": 1}, {"order": 4}, {"pool": True}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(CC, **options)


@pytest.mark.parametrize(("student", "teacher"), [((6,), (8,)), ((2, 3, 3), (4, 2, 2))])
def test_the_kit_accepts_features_of_any_shapes(student, teacher):
    check_loss(CC, sample=features(student, teacher), student="hidden", teacher="hidden")


@pytest.mark.parametrize("gamma", [0.1, 0.4, 2.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_value_is_the_mean_square_of_the_difference_between_kernels(gamma, order):
    student, teacher = logits(), logits(seed=1)
    found = CC(gamma=gamma, order=order).value(batch_of(student, teacher))
    assert float(found) == pytest.approx(expected(student, teacher, gamma, order), rel=1e-10)


def test_the_series_approaches_the_gaussian_kernel():
    student, teacher = logits(), logits(seed=1)
    kernels = []
    for rows in (student, teacher):
        directions = rows / rows.norm(dim=1, keepdim=True)
        kernels.append(torch.exp(-0.4 * torch.cdist(directions, directions).square()))
    exact = (kernels[0] - kernels[1]).square().mean()
    torch.testing.assert_close(CC(order=12).value(batch_of(student, teacher)), exact)


def test_equal_embeddings_cost_nothing():
    value, gradient = value_and_gradient(CC(), logits(), logits())
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", ["an item twice", "an item of zeros", "zeros only", "opposite items"])
def test_awkward_items_have_the_value_of_the_formula(name):
    student = AWKWARD[name]()
    teacher = logits(len(student), seed=1)
    assert float(CC().value(batch_of(student, teacher))) == pytest.approx(expected(student, teacher), rel=1e-10)


@pytest.mark.parametrize("awkward", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_awkward_items_give_a_finite_value_and_gradient(awkward, dtype):
    items = awkward()
    for other in (logits(len(items), seed=1), items):
        for student, teacher in ((items, other), (other, items)):
            value, gradient = value_and_gradient(CC(), student, teacher, dtype)
            assert math.isfinite(value)
            assert gradient.isfinite().all()


def test_one_item_costs_nothing():
    value, gradient = value_and_gradient(CC(), logits(1), logits(1, seed=1))
    assert value == pytest.approx(0, abs=1e-20)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "cc: gamma must be a finite number above 0, got 0.0"),
        ({"gamma": True}, "cc: gamma must be a finite number above 0, got True"),
        ({"order": 0}, "cc: order must be a whole number of at least 1, got 0"),
        ({"order": 2.0}, "cc: order must be a whole number of at least 1, got 2.0"),
        ({"teacher": "layer4"}, "cc: student=None and teacher='layer4'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        CC(**options)


@pytest.mark.parametrize("paths", [{}, {"student": "hidden", "teacher": "relu"}], ids=str)
def test_a_fit_lowers_it(paths):
    losses = course(CC(**paths))
    assert losses[-1] < 0.97 * losses[0]
