import math

import pytest
import torch
from safetensors.torch import load_file

from kdengine.api import ConfigurationError
from kdengine.losses import VID
from kdengine.testing import check_loss, tiny_run

from .common import (
    PATHS,
    STAGES,
    assert_finite_where_awkward,
    assert_gradient,
    course,
    features,
    fit,
    on_features,
    prepared,
    random,
)


def test_the_kit_accepts_it():
    check_loss(VID, sample=features((2, 3, 3), (3, 3, 3)), **PATHS)


def test_the_kit_accepts_maps_and_vectors_with_every_option():
    sample = features({"a1": (2, 4, 4), "a2": (3,)}, {"b1": (2, 2, 2), "b2": (2,)})
    check_loss(VID, sample=sample, student="a*", teacher=["b1", "b2"], hidden=3, initial_variance=0.5, eps=0.01)


def test_the_gradient_is_right_for_tokens():
    assert_gradient(VID(**PATHS), random(2, 3, 4), random(2, 3, 2, seed=1))


def linear(matrix, vector):
    return [sum(w * x for w, x in zip(row, vector, strict=True)) for row in matrix]


@pytest.mark.parametrize("shapes", [((2, 3, 3), (3, 3, 3)), ((2,), (3,)), ((4, 2), (4, 3))], ids=str)
def test_each_item_is_the_negative_log_density_by_element_without_its_constant(shapes):
    batch = features(*shapes)(4, torch.Generator().manual_seed(0))
    loss = prepared(VID(**PATHS, hidden=4), batch)
    learned = loss.learned[0]
    with torch.no_grad():
        learned.alpha.copy_(torch.tensor([-2.0, 0.5, 30.0]))
    matrices = [layer.weight.flatten(1).tolist() for layer in list(learned.mean)[::2]]
    variances = [math.log1p(math.exp(alpha)) + 1e-5 for alpha in learned.alpha.tolist()]
    expected = []
    for item in range(4):
        ours, theirs = (output.features["hidden"][item] for output in (batch.student, batch.teacher))
        if ours.ndim == 3:
            ours, theirs = (feature.flatten(1).T for feature in (ours, theirs))
        densities = []
        for s, t in zip(ours.reshape(-1, 2).tolist(), theirs.reshape(-1, 3).tolist(), strict=True):
            hidden = [max(0.0, x) for x in linear(matrices[0], s)]
            hidden = [max(0.0, x) for x in linear(matrices[1], hidden)]
            for x, mean, variance in zip(t, linear(matrices[2], hidden), variances, strict=True):
                density = math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
                densities.append(-math.log(density) - 0.5 * math.log(2 * math.pi))
        expected.append(sum(densities) / len(densities))
    torch.testing.assert_close(
        loss.per_item(batch).detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0.0
    )


@pytest.mark.parametrize("variance", [1e-3, 5.0, 4000.0])
def test_the_variance_starts_as_asked(variance):
    batch = features((2, 2, 2), (3, 2, 2))(2, torch.Generator())
    loss = prepared(VID(**PATHS, initial_variance=variance), batch)
    found = torch.nn.functional.softplus(loss.learned[0].alpha) + 1e-5
    torch.testing.assert_close(found, torch.full_like(found, variance), rtol=1e-6, atol=0.0)


def test_pairs_add_up():
    student, teacher = ({"a": random(2, 3, 4, 4, seed=s), "b": random(2, 3, seed=s + 1)} for s in (0, 2))
    batch = on_features(student, teacher)
    both = prepared(VID(["a", "b"], ["a", "b"]), batch)
    expected = 0.0
    for at, path in enumerate("ab"):
        single = prepared(VID(path, path), batch)
        single.learned[0] = both.learned[at]
        expected = expected + single.per_item(batch)
    torch.testing.assert_close(both.per_item(batch), expected)


def test_a_perfect_prediction_is_cheaper_with_less_variance():
    batch = features((2, 2, 2), (3, 2, 2))(2, torch.Generator())
    loss = prepared(VID(**PATHS), batch)
    with torch.no_grad():
        batch.teacher.features["hidden"].copy_(loss.learned[0].mean(batch.student.features["hidden"]))
        before = loss.per_item(batch)
        loss.learned[0].alpha.sub_(3.0)
    assert (loss.per_item(batch) < before).all()


def test_awkward_features_give_a_finite_value_and_gradient():
    assert_finite_where_awkward(lambda: VID(**PATHS), (3, 2, 4, 4), (3, 3, 2, 2))


@pytest.mark.parametrize("shapes", [((6,), (3, 2, 2)), ((4, 6), (5, 6)), ((2, 2, 2, 2), (2, 2, 2, 2))], ids=str)
def test_features_that_cannot_be_matched_are_refused_with_their_paths(shapes):
    batch = features(*shapes)(2, torch.Generator())
    with pytest.raises(
        ConfigurationError, match=r"VID: student 'hidden' \(2, .*\) and teacher 'hidden' .*: expected maps"
    ):
        prepared(VID(**PATHS), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "vid: hidden must be a whole number of at least 1, got 0"),
        ({"eps": 0.0}, "vid: eps must be a finite number above 0, got 0.0"),
        ({"initial_variance": 1e-6}, "vid: initial_variance must be a finite number above 1e-05, got 1e-06"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        VID(**PATHS, **options)


def test_a_fit_lowers_it():
    losses = course(VID(**STAGES))
    assert losses[-1] < losses[0] - 0.2


def test_a_fit_lowers_it_on_vectors():
    history = tiny_run({"own": VID(**PATHS)}, epochs=6).result.history
    assert history[-1]["loss"] < history[0]["loss"]


def test_what_is_learned_trains_and_is_not_exported(tmp_path):
    loss = VID(**STAGES)
    found = fit(loss, epochs=1, out=tmp_path / "run")
    exported = load_file(found.out / "student.safetensors")
    assert all(name.split(".")[0] in ("stage1", "stage2", "head") for name in exported)
    assert len({round(value, 6) for part in loss.learned for value in part.alpha.tolist()}) > 1
