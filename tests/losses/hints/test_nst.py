import math

import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.losses import NST
from kdengine.testing import check_loss

from .common import (
    PATHS,
    STAGES,
    assert_finite_where_awkward,
    assert_gradient,
    course,
    features,
    on_features,
    prepared,
    random,
)
from .common import value_and_gradients as run

KERNELS = [{}, {"kernel": "linear"}, {"kernel": "gaussian"}, {"degree": 3, "offset": 0.5}]


def patterns(item):
    """The channels of one item (C, H, W), each divided by its length."""
    return [[x / math.hypot(*channel) for x in channel] for channel in item.flatten(1).tolist()]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def discrepancy(student, teacher, kernel):
    def mean(first, second):
        return sum(kernel(x, y) for x in first for y in second) / (len(first) * len(second))

    return mean(student, student) + mean(teacher, teacher) - 2 * mean(student, teacher)


def kernel_of(options, student, teacher):
    if options.get("kernel") == "linear":
        return dot
    if options.get("kernel") == "gaussian":
        samples = student + teacher
        mean = sum(math.dist(x, y) ** 2 for x in samples for y in samples) / len(samples) ** 2
        return lambda x, y: math.exp(-(math.dist(x, y) ** 2) / (2 * mean))
    return lambda x, y: (dot(x, y) + options.get("offset", 0.0)) ** options.get("degree", 2)


def test_the_kit_accepts_it():
    check_loss(NST, sample=features((2, 3, 3), (2, 3, 3)), **PATHS)


def test_the_kit_accepts_the_gaussian_kernel_on_several_pairs_of_different_sizes():
    sample = features({"layer1": (2, 4, 4), "layer2": (3, 2, 2)}, {"layer1": (2, 2, 2), "layer2": (3, 3, 5)})
    check_loss(NST, sample=sample, student="layer*", teacher=["layer1", "layer2"], kernel="gaussian")


@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_the_gradient_is_right_for_every_kernel(options):
    assert_gradient(NST(**PATHS, **options), random(2, 2, 3, 3), random(2, 3, 3, 3, seed=1))


@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_each_item_is_the_squared_discrepancy_of_its_channels(options):
    student, teacher = random(4, 2, 3, 3), random(4, 5, 3, 3, seed=1)
    found = NST(**PATHS, **options).per_item(on_features(student, teacher))
    for at, value in enumerate(found.tolist()):
        ours, theirs = patterns(student[at]), patterns(teacher[at])
        assert value == pytest.approx(discrepancy(ours, theirs, kernel_of(options, ours, theirs)), rel=1e-11)


def test_pairs_add_up():
    student, teacher = ({"a": random(2, 3, 4, 4, seed=s), "b": random(2, 3, 2, 2, seed=s + 1)} for s in (0, 2))
    both = NST(["a", "b"], ["a", "b"]).per_item(on_features(student, teacher))
    single = [NST(path, path).per_item(on_features(student, teacher)) for path in "ab"]
    torch.testing.assert_close(both, single[0] + single[1])


@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_equal_features_cost_nothing_in_any_order_of_channels(options):
    feature = random(3, 4, 4, 4)
    for other in (feature, feature[:, [2, 0, 3, 1]]):
        value, (gradient, *_) = run(NST(**PATHS, **options), feature, other.clone())
        assert abs(value) < 1e-14
        assert gradient.abs().max() < 1e-14


@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_awkward_features_give_a_finite_value_and_gradient(options):
    assert_finite_where_awkward(lambda: NST(**PATHS, **options))


def test_features_that_are_no_maps_are_refused_with_their_paths():
    with pytest.raises(
        ConfigurationError, match=r"NST: student 'hidden' \(2, 6\) and teacher 'hidden' \(2, 3, 2, 2\): .* maps"
    ):
        prepared(NST(**PATHS), on_features(random(2, 6), random(2, 3, 2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "rbf"}, "nst: kernel must be 'polynomial', 'linear' or 'gaussian', got 'rbf'"),
        ({"degree": 0}, "nst: degree must be a whole number of at least 1, got 0"),
        ({"offset": -1.0}, "nst: offset must be a finite number of at least 0, got -1.0"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        NST(**PATHS, **options)


@pytest.mark.parametrize("options", KERNELS[:3], ids=str)
def test_a_fit_lowers_it(options):
    losses = course(NST(**STAGES, **options))
    assert losses[-1] < 0.7 * losses[0]
