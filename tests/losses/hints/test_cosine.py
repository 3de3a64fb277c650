import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdengine.api import ConfigurationError
from kdengine.losses import Cosine
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
from .common import value_and_gradients as run


def test_the_kit_accepts_features_without_a_projector():
    check_loss(Cosine, sample=features((3, 2, 2), (3, 2, 2)), **PATHS)


def test_the_kit_accepts_a_map_a_vector_and_tokens_with_their_projectors():
    sample = features({"a": (2, 4, 4), "b": (3,), "c": (4, 3)}, {"a": (3, 2, 2), "b": (2,), "c": (4, 2)})
    check_loss(Cosine, sample=sample, student=["a", "b", "c"], teacher=["a", "b", "c"])


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


@pytest.mark.parametrize("shape", [(5, 3, 2), (5,), (4, 5)], ids=["map", "vector", "tokens"])
def test_each_item_is_one_minus_the_mean_cosine_of_its_positions(shape):
    student, teacher = random(4, *shape), random(4, *shape, seed=1)
    found = prepared(Cosine(**PATHS), on_features(student, teacher)).per_item(on_features(student, teacher))
    for item, value in enumerate(found.tolist()):
        ours, theirs = (
            (feature[item].flatten(1).T if len(shape) == 3 else feature[item].reshape(-1, 5)).tolist()
            for feature in (student, teacher)
        )
        cosines = [cosine(x, y) for x, y in zip(ours, theirs, strict=True)]
        assert value == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-12)


def test_the_value_is_the_mean_over_pairs():
    student, teacher = ({"a": random(2, 3, 4, 4, seed=s), "b": random(2, 5, seed=s + 1)} for s in (0, 2))
    both = Cosine(["a", "b"], ["a", "b"]).per_item(on_features(student, teacher))
    single = [Cosine(path, path).per_item(on_features(student, teacher)) for path in "ab"]
    torch.testing.assert_close(both, (single[0] + single[1]) / 2)


@pytest.mark.parametrize(("factor", "expected"), [(3.0, 0.0), (-0.5, 2.0)])
def test_it_sees_directions_only(factor, expected):
    feature = random(3, 4, 2, 2)
    value, (gradient, *_) = run(Cosine(**PATHS), feature, factor * feature)
    torch.testing.assert_close(value, torch.tensor(3 * expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert gradient.abs().max() < 1e-12


def test_a_vector_of_zeros_is_at_right_angles_to_everything_and_gets_no_gradient():
    for student, teacher in ((torch.zeros(2, 3).double(), random(2, 3)), (random(2, 3), torch.zeros(2, 3).double())):
        value, (gradient, *_) = run(Cosine(**PATHS), student, teacher)
        assert value == 2
        assert not gradient.any()


@pytest.mark.parametrize("shape", [(2, 3, 3), (4, 2, 2)])
def test_the_gradient_is_right_with_a_named_projector(shape):
    assert_gradient(Cosine(**PATHS, projector="conv1x1"), random(2, *shape), random(2, 2, 3, 3, seed=1))


@pytest.mark.parametrize("teacher", [(3, 2, 4, 4), (3, 3, 2, 2)])
def test_awkward_features_give_a_finite_value_and_gradient(teacher):
    assert_finite_where_awkward(lambda: Cosine(**PATHS), (3, 2, 4, 4), teacher)


def test_a_projector_may_be_a_factory():
    batch = features((4,), (2,))(3, torch.Generator())
    loss = prepared(Cosine(**PATHS, projector=lambda ours, theirs: nn.Linear(*ours, *theirs, bias=False)), batch)
    assert loss.learned[0].weight.shape == (2, 4)


def test_features_that_cannot_be_matched_are_refused_with_their_paths():
    batch = features((4, 2, 2), (5,))(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=r"Cosine: student 'hidden' \(2, 4, 2, 2\) and teacher 'hid"):
        prepared(Cosine(**PATHS), batch)


def test_what_is_no_projector_is_refused():
    batch = features((4,), (5,))(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=r"Cosine: .* projector must be a name or a factory, got 3"):
        prepared(Cosine(**PATHS, projector=3), batch)


def test_a_fit_lowers_it():
    losses = course(Cosine(**STAGES))
    assert losses[-1] < 0.7 * losses[0]


def test_a_fit_lowers_it_on_vectors():
    history = tiny_run({"own": Cosine(**PATHS)}, epochs=6).result.history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_what_is_learned_trains_and_is_not_exported(tmp_path):
    loss = Cosine(**STAGES)
    found = fit(loss, epochs=1, out=tmp_path / "run")
    exported = load_file(found.out / "student.safetensors")
    assert all(name.split(".")[0] in ("stage1", "stage2", "head") for name in exported)
    assert len(list(loss.learned.parameters())) == 4
