import math

import pytest
import torch

from kdengine.api import ConfigurationError, Output
from kdengine.losses import ICD
from kdengine.testing import check_loss

from .common import course, features, on_features

PATHS = {"student": "hidden", "teacher": "hidden"}


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(student, teacher, **options):
    """A loss set up on these features, and their batch."""
    batch = on_features(student, teacher)
    loss = ICD(**PATHS, **options)
    loss.setup(batch)
    return loss.double(), batch


def gram(channels):
    """F F^T over positions; Liu et al. 2021, section 3."""
    return [[sum(x * y for x, y in zip(one, other, strict=True)) for other in channels] for one in channels]


def expected(student, teacher, normalize=False):
    """1/c^2 ||G_t - G_s||^2 of each item; with rows of length 1 and 1/c as in the published code."""
    values = []
    for s, t in zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True):
        ours, theirs, count = gram(s), gram(t), len(s)
        if normalize:
            ours, theirs = ([[v / math.hypot(*row) for v in row] for row in matrix] for matrix in (ours, theirs))
        total = sum((a - b) ** 2 for p, q in zip(ours, theirs, strict=True) for a, b in zip(p, q, strict=True))
        values.append(total / (count if normalize else count**2))
    return values


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"normalize": True, "always_project": True}], ids=str)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [((6,), (6,)), ((2,), (4,)), ((2, 3, 3), (4, 3, 3)), ((5, 3), (5, 4)), ((3, 2, 2), (3, 2, 2))],
)
def test_the_kit_accepts_every_option_on_features_of_any_kind(student, teacher, batch_norm, options):
    check_loss(ICD, sample=features(student, teacher), batch_norm=batch_norm, **PATHS, **options)


@pytest.mark.parametrize("normalize", [False, True])
def test_per_item_is_the_formula(normalize):
    student, teacher = maps(4, 3, 2, 5), maps(4, 3, 2, 5, seed=1)
    loss, batch = made(student, teacher, normalize=normalize)
    values = expected(student, teacher, normalize)
    assert loss.per_item(batch).tolist() == pytest.approx(values, rel=1e-12)
    assert float(loss.value(batch)) == pytest.approx(sum(values) / 4, rel=1e-12)


def test_unequal_channels_are_projected_by_a_convolution():
    student, teacher = maps(4, 2, 3, 3), maps(4, 5, 3, 3, seed=1)
    loss, batch = made(student, teacher, batch_norm=False)
    weight = loss.projections[0].conv.weight.detach()[..., 0]
    projected = torch.einsum("oc,bchw->bohw", weight, student)
    assert loss.per_item(batch).tolist() == pytest.approx(expected(projected, teacher), rel=1e-10)


def test_and_normalised_over_batch_and_positions():
    student, teacher = maps(4, 2, 3, 3), maps(4, 5, 3, 3, seed=1)
    loss, batch = made(student, teacher)
    weight = loss.projections[0].conv.weight.detach()[..., 0]
    projected = torch.einsum("oc,bchw->bohw", weight, student)
    mean = projected.mean(dim=(0, 2, 3), keepdim=True)
    variance = projected.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    values = expected((projected - mean) / (variance + 1e-5).sqrt(), teacher)
    assert float(loss.value(batch).detach()) == pytest.approx(sum(values) / 4, rel=1e-10)


def test_tokens_and_vectors_have_their_channels_last():
    tokens = maps(3, 7, 4), maps(3, 7, 4, seed=1)
    loss, batch = made(*tokens)
    assert loss.per_item(batch).tolist() == pytest.approx(expected(*(t.transpose(1, 2) for t in tokens)), rel=1e-12)
    vectors = maps(3, 4), maps(3, 4, seed=1)
    loss, batch = made(*vectors)
    assert loss.per_item(batch).tolist() == pytest.approx(expected(*(v[:, :, None] for v in vectors)), rel=1e-12)


def test_it_does_not_see_where_in_a_map_something_is():
    student, teacher = maps(4, 3, 2, 5), maps(4, 3, 2, 5, seed=1)
    loss, batch = made(student, teacher)
    turned = on_features(student.flip(2, 3), teacher)
    torch.testing.assert_close(loss.per_item(turned), loss.per_item(batch))


@pytest.mark.parametrize("normalize", [False, True])
def test_equal_features_cost_nothing(normalize):
    student = maps(4, 3, 2, 2).requires_grad_()
    loss, batch = made(student, student.detach(), normalize=normalize)
    value = loss.value(batch)
    value.backward()
    assert value == 0
    assert not student.grad.any()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_awkward_features_give_a_finite_value_and_gradient(channels, dtype, normalize):
    awkward = maps(5, 3, 2, 2)
    awkward[0], awkward[1, 0], awkward[3] = 0.0, 0.0, awkward[2]
    large = (6e4 if normalize or dtype != torch.float16 else 30.0) * awkward.sign()  # a gradient beyond float16
    for student in (awkward, 0 * awkward, awkward[:1], large):
        student = student.to(dtype).requires_grad_()
        loss, batch = made(student, maps(len(student), channels, 2, 2, seed=1).to(dtype), normalize=normalize)
        loss.float() if dtype == torch.float16 else loss.to(dtype)
        value = loss.value(batch)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


def test_one_value_of_each_channel_is_normalised_by_what_was_seen_before():
    loss, batch = made(maps(1, 2), maps(1, 4, seed=1))
    assert loss.value(batch).isfinite()
    assert torch.equal(loss.projections[0].norm.running_mean, torch.zeros(4).double())


def test_several_pairs_add_up():
    one, other = (made(maps(4, 3, 2, 2, seed=at), maps(4, 3, 2, 2, seed=at + 1)) for at in (0, 2))
    both = on_features(maps(4, 1), maps(4, 1))
    for who in ("student", "teacher"):
        parts = (getattr(batch, who).features["hidden"] for _, batch in (one, other))
        setattr(both, who, Output(None, None, dict(zip("ab", parts, strict=True))))
    loss = ICD(student=["a", "b"], teacher=["a", "b"])
    loss.setup(both)
    torch.testing.assert_close(loss.per_item(both), one[0].per_item(one[1]) + other[0].per_item(other[1]))


def test_unequal_positions_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"icd: pair 1 of student=\['hidden'\].*4 positions in the student and 9"
    ):
        made(maps(4, 3, 2, 2), maps(4, 3, 3, 3))


def test_paths_are_required():
    with pytest.raises(TypeError, match="teacher"):
        ICD("hidden")


def test_equal_channels_are_projected_where_that_is_asked_for():
    batch = on_features(maps(4, 3, 2, 5), maps(4, 3, 2, 5, seed=1))
    plain, always = (ICD(**PATHS, batch_norm=False, always_project=always) for always in (False, True))
    for loss in (plain, always):
        loss.setup(batch)
        loss.double()
    assert not list(plain.parameters())
    assert plain.at_equality == "zero"
    assert always.at_equality is None
    with torch.no_grad():
        always.projections[0].conv.weight.copy_(torch.eye(3)[:, :, None])
    assert torch.equal(always.per_item(batch), plain.per_item(batch))
    with torch.no_grad():
        always.projections[0].conv.weight.copy_(2 * torch.eye(3)[:, :, None])
    doubled = on_features(2 * batch.student.features["hidden"], batch.teacher.features["hidden"])
    assert torch.equal(always.per_item(batch), plain.per_item(doubled))


@pytest.mark.parametrize("options", [{"normalize": True}, {"batch_norm": False}], ids=str)
def test_a_fit_lowers_it_and_trains_the_projection(options):
    loss = ICD("hidden", "relu", **options)
    losses = course(loss)
    assert losses[-1] < 0.97 * losses[0]
    assert loss.projections[0].conv.weight.shape == (16, 8, 1)
