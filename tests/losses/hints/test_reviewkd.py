import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from kdengine.api import ConfigurationError
from kdengine.losses import ReviewKD
from kdengine.losses.hints.reviewkd import hierarchical
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


def test_the_kit_accepts_it():
    sample = features({"a1": (1, 3, 3), "a2": (2, 2, 2)}, {"b1": (2, 3, 3), "b2": (1, 2, 2)})
    check_loss(ReviewKD, sample=sample, student="a*", teacher="b*")


def test_the_kit_accepts_maps_of_other_sizes_and_a_vector_that_are_normalized_by_themselves():
    sample = features({"a": (1, 5, 5), "b": (2,)}, {"a": (2, 3, 4), "b": (2,)})
    check_loss(ReviewKD, sample=sample, student=["a", "b"], teacher=["a", "b"], width=2, norm="group")


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_gradient_is_right_for_every_norm(norm):
    assert_gradient(ReviewKD(**PATHS, norm=norm), random(3, 2, 6, 6), random(3, 2, 5, 5, seed=1))


def normalized(maps, module):
    mean = maps.mean(dim=(0, 2, 3), keepdim=True)
    variance = (maps - mean).square().mean(dim=(0, 2, 3), keepdim=True)
    return (maps - mean) / (variance + 1e-5).sqrt() * module.weight.view(1, -1, 1, 1) + module.bias.view(1, -1, 1, 1)


def nearest(maps, size):
    """Nearest neighbour, by index."""
    rows, columns = ([at * have // want for at in range(want)] for have, want in zip(maps.shape[2:], size, strict=True))
    return maps[:, :, rows][:, :, :, columns]


def cells(maps, level):
    """Means over the cells of a grid, one by one."""
    made = maps.new_zeros(*maps.shape[:2], level, level)
    height, width = maps.shape[2:]
    for i in range(level):
        for j in range(level):
            rows = slice(i * height // level, -(-(i + 1) * height // level))
            columns = slice(j * width // level, -(-(j + 1) * width // level))
            made[:, :, i, j] = maps[:, :, rows, columns].mean(dim=(2, 3))
    return made


def pyramid(student, teacher):
    weights = {None: 1.0}
    for level in (4, 2, 1):
        if level < student.shape[2]:
            weights[level] = weights[list(weights)[-1]] / 2
    total = 0.0
    for level, weight in weights.items():
        ours, theirs = (maps if level is None else cells(maps, level) for maps in (student, teacher))
        total = total + weight * (ours - theirs).square().flatten(1).mean(dim=1)
    return total / sum(weights.values())


def test_the_value_is_the_pyramid_loss_of_maps_fused_from_deep_to_shallow():
    ours = {"a": random(4, 2, 6, 6), "b": random(4, 3, 3, 3, seed=1), "c": random(4, 3, seed=2)}
    theirs = {"a": random(4, 3, 6, 6, seed=3), "b": random(4, 2, 5, 5, seed=4), "c": random(4, 4, seed=5)}
    batch = on_features(ours, theirs)
    loss = prepared(ReviewKD(list("abc"), list("abc")), batch)
    for parameter in loss.parameters():
        parameter.data += 0.3 * random(*parameter.shape, seed=9)
    total, deeper = 0.0, None
    for fusion, path in zip(loss.learned[::-1], "cba", strict=True):
        x, t = (f[:, :, None, None] if f.ndim == 2 else f for f in (ours[path], theirs[path]))
        x = normalized(torch.einsum("oi,bihw->bohw", fusion.enter[0].weight[:, :, 0, 0], x), fusion.enter[1])
        if deeper is not None:
            u = nearest(deeper, x.shape[2:])
            logits = torch.einsum("oi,bihw->bohw", fusion.attention.weight[:, :, 0, 0], torch.cat([x, u], 1))
            gates = 1 / (1 + torch.exp(-logits - fusion.attention.bias.view(1, -1, 1, 1)))
            x = x * gates[:, :1] + u * gates[:, 1:]
        else:
            assert fusion.attention is None
        deeper = nearest(x, t.shape[2:])
        s = normalized(F.conv2d(deeper, fusion.leave[0].weight, padding=1), fusion.leave[1])
        total = total + pyramid(s, t)
    torch.testing.assert_close(loss.value(batch), total.mean(), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(loss.per_item(batch), total, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (4, 4), (3, 3), (2, 2), (1, 1), (5, 9)])
def test_the_pyramid_leaves_out_levels_that_are_not_smaller_than_the_map(size):
    student, teacher = random(2, 3, *size), random(2, 3, *size, seed=1)
    torch.testing.assert_close(hierarchical(student, teacher), pyramid(student, teacher))
    assert not hierarchical(student, student.clone()).any()


def test_the_width_is_that_of_the_students_deepest_feature_and_at_most_512():
    for channels, width in ((3, 3), (600, 512)):
        batch = features({"a": (2, 2, 2), "b": (channels, 1, 1)}, {"a": (2, 2, 2), "b": (4, 1, 1)})(
            2, torch.Generator()
        )
        loss = prepared(ReviewKD(["a", "b"], ["a", "b"]), batch)
        assert [fusion.enter[0].out_channels for fusion in loss.learned] == [width, width]


def test_one_item_with_one_position_is_finite():
    batch = on_features(random(1, 2, 1, 1).requires_grad_(), random(1, 3, 1, 1, seed=1))
    loss = prepared(ReviewKD(**PATHS), batch)
    leaves = [batch.student.features["hidden"], *loss.parameters()]
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.value(batch), leaves))


def test_only_the_batch_norm_makes_the_value_depend_on_the_batch():
    assert ReviewKD(**PATHS).scope == "batch"
    assert ReviewKD(**PATHS, norm="group").scope == ReviewKD(**PATHS, norm="none").scope == "item"


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_awkward_features_give_a_finite_value_and_gradient(norm):
    assert_finite_where_awkward(lambda: ReviewKD(**PATHS, norm=norm), (3, 2, 4, 4), (3, 3, 5, 5))


def test_features_that_cannot_be_matched_are_refused_with_their_paths():
    batch = features((4, 6), (2, 2, 2))(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=r"ReviewKD: student 'hidden' \(2, 4, 6\) and teacher .*: expected"):
        prepared(ReviewKD(**PATHS), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "reviewkd: width must be a whole number of at least 1, got 0"),
        ({"norm": "layer"}, "reviewkd: norm must be 'batch', 'group' or 'none', got 'layer'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        ReviewKD(**PATHS, **options)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_fit_lowers_it(norm):
    losses = course(ReviewKD(**STAGES, norm=norm))
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_learned_trains_and_is_not_exported(tmp_path):
    loss = ReviewKD(**STAGES)
    found = fit(loss, epochs=1, out=tmp_path / "run")
    exported = load_file(found.out / "student.safetensors")
    assert all(name.split(".")[0] in ("stage1", "stage2", "head") for name in exported)
    assert all(bool((fusion.leave[1].bias != 0).any()) for fusion in loss.learned)
