import math

import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.losses import PKT
from kdengine.testing import check_loss

from ..outputs import batch_of, logits
from .common import AWKWARD, course, features, value_and_gradient


def probabilities(rows):
    """p(j | i) of the cosine kernel over the other items, Passalis and Tefas 2018, section 3."""
    found = []
    for i, one in enumerate(rows):
        kernels = {}
        for j, other in enumerate(rows):
            sizes = math.hypot(*one) * math.hypot(*other)
            cosine = sum(x * y for x, y in zip(one, other, strict=True)) / sizes if sizes else 0.0
            kernels[j] = (1 + cosine) / 2
        del kernels[i]
        found.append({j: kernel / sum(kernels.values()) for j, kernel in kernels.items()})
    return found


def expected(student, teacher):
    """The mean over items of KL(p || q)."""
    total = 0.0
    for q, p in zip(probabilities(student.tolist()), probabilities(teacher.tolist()), strict=True):
        total += sum(p[j] * math.log(p[j] / q[j]) for j in p if p[j])
    return total / len(student)


@pytest.mark.parametrize("pool", [False, True])
def test_the_kit_accepts_every_option(pool):
    check_loss(PKT, pool=pool)


@pytest.mark.parametrize(("student", "teacher"), [((6,), (8,)), ((2, 3, 3), (4, 2, 2))])
def test_the_kit_accepts_features_of_any_shapes(student, teacher):
    check_loss(PKT, sample=features(student, teacher), student="hidden", teacher="hidden")


@pytest.mark.parametrize("items", [2, 3, 6, 20])
def test_the_value_is_the_mean_divergence_of_the_neighbours(items):
    student, teacher = logits(items), logits(items, seed=1)
    found = float(PKT().value(batch_of(student, teacher)))
    assert found == pytest.approx(expected(student, teacher), rel=1e-5, abs=1e-12)


def test_it_does_not_see_how_large_an_item_is():
    student, teacher = logits(), logits(seed=1)
    sizes = torch.arange(1.0, 7.0).double()[:, None]
    torch.testing.assert_close(PKT().value(batch_of(sizes * student, teacher)), PKT().value(batch_of(student, teacher)))


def test_equal_embeddings_cost_nothing():
    value, gradient = value_and_gradient(PKT(), logits(), logits())
    assert value == 0
    assert gradient.abs().max() < 1e-12


def test_it_grows_with_the_distance_to_the_teacher_on_either_side():
    teacher, step = logits(), logits(seed=1)
    found = [float(PKT().value(batch_of(teacher + size * step, teacher))) for size in (-0.2, -0.1, 0.0, 0.1, 0.2)]
    assert found[0] > found[1] > found[2] == 0 < found[3] < found[4]


@pytest.mark.parametrize("name", ["an item twice", "the same item only", "an item of zeros", "zeros only"])
def test_awkward_items_have_the_value_of_the_formula(name):
    student = AWKWARD[name]()
    teacher = logits(len(student), seed=1)
    found = float(PKT().value(batch_of(student, teacher)))
    assert found == pytest.approx(expected(student, teacher), rel=1e-5)


def test_opposite_items_cost_much_but_not_without_limit():
    teacher = torch.ones(3, 2).double()
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]).double()
    assert 1 < float(PKT().value(batch_of(student, teacher))) < 20


@pytest.mark.parametrize("awkward", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_awkward_items_give_a_finite_value_and_gradient(awkward, dtype):
    items = awkward()
    for other in (logits(len(items), seed=1), items):
        for student, teacher in ((items, other), (other, items)):
            value, gradient = value_and_gradient(PKT(), student, teacher, dtype)
            assert math.isfinite(value)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("items", [1, 2])
def test_one_item_or_two_cost_nothing(items):
    value, gradient = value_and_gradient(PKT(), logits(items), logits(items, seed=1))
    assert value == 0
    assert gradient.abs().max() < 1e-12


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="pkt: student='layer4' and teacher=None"):
        PKT(student="layer4")


@pytest.mark.parametrize("paths", [{}, {"student": "hidden", "teacher": "relu"}], ids=str)
def test_a_fit_lowers_it(paths):
    losses = course(PKT(**paths))
    assert losses[-1] < 0.97 * losses[0]
