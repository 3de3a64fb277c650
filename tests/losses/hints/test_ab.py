import pytest
import torch
from safetensors.torch import load_file

import kdengine
from kdengine.api import ConfigurationError
from kdengine.losses import AB
from kdengine.testing import check_loss

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

pytestmark = pytest.mark.filterwarnings("ignore:ab compares features before the activation")


def test_the_kit_accepts_it():
    check_loss(AB, sample=features((2, 3, 3), (3, 3, 3)), **PATHS)


def test_the_kit_accepts_several_pairs_that_are_normalized_by_themselves():
    sample = features({"a1": (1, 4, 4), "a2": (5,)}, {"b1": (2, 2, 2), "b2": (5,)})
    check_loss(AB, sample=sample, student="a*", teacher="b*", norm="group", margin=0.5)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_gradient_is_right_for_every_norm(norm):
    assert_gradient(AB(**PATHS, norm=norm), random(3, 2, 3, 3), random(3, 3, 3, 3, seed=1))


@pytest.mark.parametrize("margin", [1.0, 0.25])
def test_each_item_is_the_sum_of_squared_distances_to_the_margin(margin):
    batch = on_features(random(4, 3, 2, 2), random(4, 3, 2, 2, seed=1))
    batch.teacher.features["hidden"][0, 0, 0, 0] = 0.0
    loss = prepared(AB(**PATHS, margin=margin), batch)
    found = loss.per_item(batch)
    for item, value in enumerate(found.tolist()):
        total = 0.0
        ours, theirs = (output.features["hidden"][item].flatten().tolist() for output in (batch.student, batch.teacher))
        for s, t in zip(ours, theirs, strict=True):
            active = 1.0 if t > 0 else 0.0
            total += (active * max(0.0, margin - s) + (1 - active) * max(0.0, margin + s)) ** 2
        assert value == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(loss.value(batch), found.mean())


def test_other_channels_go_through_a_convolution_and_batch_normalization():
    batch = on_features(random(4, 2, 3, 3), random(4, 3, 3, 3, seed=1))
    loss = prepared(AB(**PATHS), batch)
    projected = torch.einsum(
        "oi,bihw->bohw", loss.learned[0][0].weight[:, :, 0, 0], batch.student.features["hidden"]
    ).detach()
    mean = projected.mean(dim=(0, 2, 3), keepdim=True)
    projected = (projected - mean) / (projected.var(dim=(0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    same = on_features(projected, batch.teacher.features["hidden"])
    torch.testing.assert_close(loss.per_item(batch), AB(**PATHS).per_item(same))


def test_a_student_outside_the_margin_on_the_teachers_side_costs_nothing():
    teacher = random(3, 2, 2, 2)
    student = (1.5 * teacher.sign()).requires_grad_()
    value = AB(**PATHS).per_item(on_features(student, teacher)).sum()
    assert value == 0
    assert not torch.autograd.grad(value, student)[0].any()


def test_how_active_the_teacher_is_does_not_matter():
    student, teacher = random(3, 2, 2, 2), random(3, 2, 2, 2, seed=1)
    torch.testing.assert_close(
        AB(**PATHS).per_item(on_features(student, 1e-20 * teacher)), AB(**PATHS).per_item(on_features(student, teacher))
    )


def test_a_pair_counts_half_of_the_next():
    paths = ["a", "b", "c"]
    batch = on_features(*({path: random(3, 2, seed=at + seed) for at, path in enumerate(paths)} for seed in (0, 3)))
    parts = [AB(path, path).per_item(batch) for path in paths]
    torch.testing.assert_close(AB(paths, paths).per_item(batch), parts[0] / 4 + parts[1] / 2 + parts[2])


def test_only_the_batch_norm_makes_the_value_depend_on_the_batch():
    assert AB(**PATHS).scope == "batch"
    assert AB(**PATHS, norm="group").scope == AB(**PATHS, norm="none").scope == "item"


def test_one_item_with_one_position_is_finite():
    batch = on_features(random(1, 2, 1, 1).requires_grad_(), random(1, 3, 1, 1, seed=1))
    loss = prepared(AB(**PATHS), batch)
    leaves = [batch.student.features["hidden"], *loss.parameters()]
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.value(batch), leaves))


@pytest.mark.parametrize(("norm", "channels"), [("batch", 3), ("group", 3), ("none", 2)])
def test_awkward_features_give_a_finite_value_and_gradient(norm, channels):
    assert_finite_where_awkward(lambda: AB(**PATHS, norm=norm), (3, 2, 4, 4), (3, channels, 2, 2), weight=0.003)


@pytest.mark.parametrize("shapes", [((6,), (5,)), ((2, 3, 3), (6,)), ((4, 6), (4, 5))], ids=str)
def test_features_that_cannot_be_matched_are_refused_with_their_paths(shapes):
    batch = features(*shapes)(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=r"AB: student 'hidden' \(2, .*\) and teacher .*: expected feature"):
        prepared(AB(**PATHS), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, "ab: margin must be a finite number above 0, got 0.0"),
        ({"norm": "layer"}, "ab: norm must be 'batch', 'group' or 'none', got 'layer'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        AB(**PATHS, **options)


def test_the_margin_may_be_a_schedule():
    assert set(AB(**PATHS, margin=kdengine.Linear(1.0, 0.5)).schedules) == {"margin"}


@pytest.mark.parametrize("width", [4, 8])
def test_a_fit_lowers_it(width):
    losses = course(AB(["stage1.1", "stage2.1"], ["stage1.1", "stage2.1"]), width=width)
    assert losses[-1] < 0.8 * losses[0]


def test_what_is_learned_trains_and_is_not_exported(tmp_path):
    loss = AB(**STAGES)
    found = fit(loss, epochs=1, out=tmp_path / "run")
    exported = load_file(found.out / "student.safetensors")
    assert all(name.split(".")[0] in ("stage1", "stage2", "head") for name in exported)
    assert all(bool((part[1].bias != 0).any()) for part in loss.learned)
