import math

import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.losses import SP
from kdengine.testing import check_loss

from ..outputs import batch_of, logits
from .common import AWKWARD, course, features, on_features, value_and_gradient


def similarities(rows):
    """Rows of Q Q^T, each of length 1; Tung and Mori 2019, equations 1 and 2."""
    found = []
    for one in rows:
        row = [sum(x * y for x, y in zip(one, other, strict=True)) for other in rows]
        size = math.hypot(*row)
        found.append([value / size if size else 0.0 for value in row])
    return found


def expected(student, teacher):
    """1/b^2 ||G_T - G_S||_F^2, equation 4 for one pair of layers."""
    s, t = similarities(student.flatten(1).tolist()), similarities(teacher.flatten(1).tolist())
    items = range(len(s))
    return sum((s[i][j] - t[i][j]) ** 2 for i in items for j in items) / len(s) ** 2


@pytest.mark.parametrize("pool", [False, True])
def test_the_kit_accepts_every_option(pool):
    check_loss(SP, pool=pool)


@pytest.mark.parametrize(("student", "teacher"), [((6,), (8,)), ((2, 3, 3), (4, 2, 2)), ((3, 4), (3, 5))])
def test_the_kit_accepts_features_of_any_shapes(student, teacher):
    check_loss(SP, sample=features(student, teacher), student="hidden", teacher="hidden")


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_value_is_the_mean_square_of_the_difference_between_similarities(scale):
    student, teacher = scale * logits(), logits(seed=1)
    assert float(SP().value(batch_of(student, teacher))) == pytest.approx(expected(student, teacher), rel=1e-10)


def test_feature_maps_are_flattened():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, *shape, generator=generator).double() for shape in ((2, 3, 3), (4, 2, 2)))
    found = SP(student="hidden", teacher="hidden").value(on_features(student, teacher))
    assert float(found) == pytest.approx(expected(student, teacher), rel=1e-10)


def test_each_item_counts_alike_however_large_it_is():
    student, teacher = logits(), logits(seed=1)
    student[0] *= 1e3
    assert float(SP().value(batch_of(student, teacher))) == pytest.approx(expected(student, teacher), rel=1e-10)
    assert float(SP().value(batch_of(student, teacher))) <= 4.0 / 6


def test_equal_embeddings_cost_nothing():
    value, gradient = value_and_gradient(SP(), logits(), logits())
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", ["an item twice", "an item of zeros", "zeros only", "opposite items"])
def test_awkward_items_have_the_value_of_the_formula(name):
    student = AWKWARD[name]()
    teacher = logits(len(student), seed=1)
    assert float(SP().value(batch_of(student, teacher))) == pytest.approx(expected(student, teacher), rel=1e-10)


@pytest.mark.parametrize("awkward", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_awkward_items_give_a_finite_value_and_gradient(awkward, dtype):
    items = awkward()
    for other in (logits(len(items), seed=1), items):
        for student, teacher in ((items, other), (other, items)):
            value, gradient = value_and_gradient(SP(), student, teacher, dtype)
            assert math.isfinite(value)
            assert gradient.isfinite().all()


def test_one_item_costs_nothing():
    value, gradient = value_and_gradient(SP(), logits(1), logits(1, seed=1))
    assert value == 0
    assert gradient.abs().max() < 1e-12


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="sp: student='layer4' and teacher=None"):
        SP(student="layer4")


@pytest.mark.parametrize("paths", [{}, {"student": "hidden", "teacher": "relu"}], ids=str)
def test_a_fit_lowers_it(paths):
    losses = course(SP(**paths))
    assert losses[-1] < 0.97 * losses[0]
