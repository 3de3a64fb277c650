import math

import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.losses import Attention
from kdengine.testing import check_loss

from .common import PATHS, assert_finite_where_awkward, assert_gradient, course, features, on_features, prepared, random
from .common import value_and_gradients as run


def attention(item, p):
    """Q / |Q| of one item (C, H, W), in plain Python: Q is the sum over channels of |A_c|^p."""
    channels = item.flatten(1).tolist()
    q = [sum(abs(channel[at]) ** p for channel in channels) for at in range(len(channels[0]))]
    length = math.sqrt(sum(x * x for x in q))
    return [x / length for x in q]


def test_the_kit_accepts_it():
    check_loss(Attention, sample=features((2, 3, 3), (2, 3, 3)), **PATHS)


def test_the_kit_accepts_the_norm_of_several_pairs_of_different_sizes():
    sample = features(
        {"layer1": (2, 4, 4), "layer2": (3, 2, 2)}, {"block.0": (2, 2, 2), "block.1": (3, 3, 5), "other": (1, 2, 2)}
    )
    check_loss(Attention, sample=sample, student="layer*", teacher=["block.*"], distance="norm")


@pytest.mark.parametrize("options", [{"p": 1.0}, {"p": 3.5}, {"p": 3.5, "distance": "norm"}], ids=str)
def test_the_gradient_is_right_for_every_option(options):
    assert_gradient(Attention(**PATHS, **options), random(2, 2, 3, 3), random(2, 3, 3, 3, seed=1))


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("distance", ["square", "norm"])
def test_each_item_is_the_distance_of_normalized_attention(p, distance):
    student, teacher = random(4, 2, 3, 3), random(4, 5, 3, 3, seed=1)
    found = Attention(**PATHS, p=p, distance=distance).per_item(on_features(student, teacher))
    for item, value in enumerate(found.tolist()):
        gaps = [a - b for a, b in zip(attention(student[item], p), attention(teacher[item], p), strict=True)]
        squares = sum(gap * gap for gap in gaps)
        assert value == pytest.approx(math.sqrt(squares) if distance == "norm" else squares / 9, rel=1e-12)


def test_pairs_add_up():
    student, teacher = ({"a": random(2, 3, 4, 4, seed=s), "b": random(2, 3, 2, 2, seed=s + 1)} for s in (0, 2))
    both = Attention(["a", "b"], ["a", "b"]).per_item(on_features(student, teacher))
    single = [Attention(path, path).per_item(on_features(student, teacher)) for path in "ab"]
    torch.testing.assert_close(both, single[0] + single[1])


def test_the_larger_map_is_pooled_by_averages():
    student, teacher = random(2, 3, 4, 4), random(2, 3, 2, 2, seed=1)
    means = student.view(2, 3, 2, 2, 2, 2).mean(dim=(3, 5))
    got, expected = (Attention(**PATHS).per_item(on_features(s, teacher)) for s in (student, means))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("distance", ["square", "norm"])
def test_equal_features_cost_nothing_and_their_gradient_is_zero(distance):
    feature = random(3, 2, 4, 4)
    value, (gradient, *_) = run(Attention(**PATHS, distance=distance), feature, feature.clone())
    assert value == 0
    assert not gradient.any()


def test_it_does_not_see_the_scale_of_an_item():
    student, teacher = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    loss = Attention(**PATHS)
    scaled = loss.per_item(on_features(1e-20 * student, 1e20 * teacher))
    torch.testing.assert_close(scaled, loss.per_item(on_features(student, teacher)))


@pytest.mark.parametrize("options", [{}, {"distance": "norm"}, {"p": 1.0}, {"p": 4.0}], ids=str)
def test_awkward_features_give_a_finite_value_and_gradient(options):
    assert_finite_where_awkward(lambda: Attention(**PATHS, **options))


def test_features_that_are_no_maps_are_refused_with_their_paths():
    with pytest.raises(
        ConfigurationError, match=r"Attention: student 'hidden' \(2, 6\) and teacher 'hidden' \(2, 3, 2, 2\): .* maps"
    ):
        prepared(Attention(**PATHS), on_features(random(2, 6), random(2, 3, 2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.5}, "attention: p must be a finite number of at least 1, got 0.5"),
        ({"distance": "l2"}, "attention: distance must be 'square' or 'norm', got 'l2'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Attention(**PATHS, **options)


def test_a_fit_lowers_it():
    losses = course(Attention(student="stage?", teacher="stage?"))
    assert losses[-1] < 0.6 * losses[0]
