import math

import pytest
import torch

import kdengine
from kdengine.api import ConfigurationError
from kdengine.losses import RKD
from kdengine.testing import check_loss

from ..outputs import batch_of, logits
from .common import AWKWARD, course, features, on_features, value_and_gradient


def huber(difference):
    return 0.5 * difference**2 if abs(difference) <= 1 else abs(difference) - 0.5


def relative_distances(rows):
    """|x_i - x_j| over the mean of all pairs of different items, Park et al. 2019, section 3.2.1."""
    items = range(len(rows))
    found = {(i, j): math.dist(rows[i], rows[j]) for i in items for j in items}
    pairs = [value for (i, j), value in found.items() if i != j]
    mean = sum(pairs) / len(pairs)
    return {pair: value / mean for pair, value in found.items()}


def cosines(rows):
    """<e_ij, e_kj> with e_ij = (x_i - x_j) / |x_i - x_j|, section 3.2.2; 0 where i, j, k are not three items."""
    found = {}
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            for k, c in enumerate(rows):
                one, other = ([x - y for x, y in zip(side, b, strict=True)] for side in (a, c))
                sizes = math.hypot(*one) * math.hypot(*other)
                product = sum(x * y for x, y in zip(one, other, strict=True))
                found[i, j, k] = product / sizes if sizes and i != k else 0.0
    return found


def expected(student, teacher):
    terms = []
    for relation in (relative_distances, cosines):
        s, t = relation(student.tolist()), relation(teacher.tolist())
        terms.append(sum(huber(s[key] - t[key]) for key in s) / len(s))
    return terms


@pytest.mark.parametrize(
    "options", [{}, {"distance_weight": 1.0, "angle_weight": 0.0}, {"distance_weight": 0.0}, {"pool": True}], ids=str
)
def test_the_kit_accepts_every_option(options):
    check_loss(RKD, **options)


@pytest.mark.parametrize(("student", "teacher"), [((6,), (8,)), ((2, 3, 3), (4, 2, 2)), ((3, 4), (3, 5))])
def test_the_kit_accepts_features_of_any_shapes(student, teacher):
    check_loss(RKD, sample=features(student, teacher), student="hidden", teacher="hidden")


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_both_terms_are_means_of_hubers_loss_over_pairs_and_triplets(scale):
    student, teacher = scale * logits(), logits(seed=1)
    distance, angle = expected(student, teacher)
    found = RKD().value(batch_of(student, teacher))
    assert float(found["distance"]) == pytest.approx(25 * distance, rel=1e-10)
    assert float(found["angle"]) == pytest.approx(50 * angle, rel=1e-10)


def test_a_difference_above_one_costs_linearly():
    student, teacher = torch.eye(6).double(), torch.eye(6).double()
    teacher[0] *= 50.0
    distance, _ = expected(student, teacher)
    differences = relative_distances(teacher.tolist())[0, 1] - relative_distances(student.tolist())[0, 1]
    assert differences > 1
    assert float(RKD().value(batch_of(student, teacher))["distance"]) == pytest.approx(25 * distance, rel=1e-10)


def test_duplicates_count_in_the_mean_distance_and_have_no_angle():
    student, teacher = AWKWARD["an item twice"](), logits(5, seed=1)
    distance, angle = expected(student, teacher)
    found = RKD(1.0, 1.0).value(batch_of(student, teacher))
    assert [float(value) for value in found.values()] == pytest.approx([distance, angle], rel=1e-10)


def test_it_does_not_see_moves_turns_and_sizes_of_the_whole_batch():
    student, teacher = logits(), logits(seed=1)
    turn = torch.linalg.qr(logits(5, seed=2)).Q
    torch.testing.assert_close(
        RKD().value(batch_of(3.0 * student @ turn + 7.0, teacher)), RKD().value(batch_of(student, teacher))
    )


def test_equal_embeddings_cost_nothing():
    value, gradient = value_and_gradient(RKD(), logits(), logits())
    assert value == 0
    assert not gradient.any()
    same = logits(6, 8)
    assert not any(RKD(student="hidden", teacher="hidden").value(on_features(same, same)).values())


@pytest.mark.parametrize("awkward", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_awkward_items_give_a_finite_value_and_gradient(awkward, dtype):
    items = awkward()
    for other in (logits(len(items), seed=1), items):
        for student, teacher in ((items, other), (other, items)):
            value, gradient = value_and_gradient(RKD(), student, teacher, dtype)
            assert math.isfinite(value)
            assert gradient.isfinite().all()


def test_one_item_costs_nothing():
    value, gradient = value_and_gradient(RKD(), logits(1), logits(1, seed=1))
    assert value == 0
    assert not gradient.any()


def test_items_that_nearly_coincide_get_a_gradient_of_usual_size():
    student = logits(5)
    student[1] = student[0] + 1e-7
    _, gradient = value_and_gradient(RKD(1.0, 0.0), student, logits(5, seed=1))
    assert float(gradient.abs().max()) < 1


def test_a_weight_of_zero_leaves_a_term_out():
    batch = batch_of(logits(), logits(seed=1))
    alone = RKD(angle_weight=0.0).value(batch)
    assert alone["angle"] == 0
    assert alone["distance"] == RKD().value(batch)["distance"]


def test_weights_may_be_schedules():
    loss = RKD(distance_weight=kdengine.Linear(25.0, 0.0), angle_weight=0)
    assert set(loss.schedules) == {"distance_weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance_weight": -1.0}, "rkd: distance_weight must be a finite number of at least 0, got -1.0"),
        ({"angle_weight": float("nan")}, "rkd: angle_weight must be a finite number of at least 0, got nan"),
        ({"angle_weight": "50"}, "got '50'"),
        ({"distance_weight": 0, "angle_weight": 0}, "both 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        RKD(**options)


@pytest.mark.parametrize("paths", [{}, {"student": "hidden", "teacher": "relu"}], ids=str)
def test_a_fit_lowers_it(paths):
    losses = course(RKD(distance_weight=1.0, angle_weight=2.0, **paths))
    assert losses[-1] < 0.8 * losses[0]
