import pytest
import torch

import kdengine
from kdengine.losses import MSE, LogitMSE
from kdengine.testing import check_loss

from ..outputs import batch_of, logits
from .behaviour import (
    INFINITE,
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    evaluated,
)


def outputs(shape):
    """A sampler for the kit: outputs of this shape per item."""

    def sample(size, generator):
        student, teacher = (torch.randn(size, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
        return batch_of(student, teacher)

    return sample


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
def test_the_kit_accepts_outputs_of_any_shape(shape):
    check_loss(MSE, sample=outputs(shape))


def test_per_item_is_the_square_of_each_element():
    student, teacher = logits(), logits(seed=1)
    for got, s, t in zip(
        MSE().per_item(batch_of(student, teacher)).tolist(), student.tolist(), teacher.tolist(), strict=True
    ):
        assert got == pytest.approx([(a - b) ** 2 for a, b in zip(s, t, strict=True)], abs=1e-12)


@pytest.mark.parametrize("shape", [(6, 5), (6,), (2, 3, 5)])
def test_items_are_averaged_over_their_elements(shape):
    student, teacher = (logits(seed=seed).flatten()[: torch.Size(shape).numel()].view(shape) for seed in (0, 1))
    value, gradient = evaluated(MSE(), student, teacher)
    elements = student[0].numel()
    torch.testing.assert_close(value, (student - teacher).square().sum() / elements)
    torch.testing.assert_close(gradient, 2 * (student - teacher) / elements)


def test_on_logits_it_is_logit_mse():
    student, teacher = logits(), logits(seed=1)
    for got, wanted in zip(evaluated(MSE(), student, teacher), evaluated(LogitMSE(), student, teacher), strict=True):
        torch.testing.assert_close(got, wanted)


def test_equal_outputs_cost_nothing():
    assert_equality(MSE(), tolerance=0.0)


def test_extreme_outputs_are_finite():
    assert_finite_at_extremes(MSE())


def test_masked_elements_of_both_are_no_nan():
    student, teacher = logits(), logits(seed=1)
    student[:, 1] = teacher[:, 1] = INFINITE
    value, gradient = evaluated(MSE(), student, teacher)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert not gradient[:, 1].any()


def test_outputs_that_would_broadcast_are_refused():
    with pytest.raises(kdengine.ConfigurationError, match=r"the student gave \(6, 1\) and the teacher \(6,\)"):
        MSE().per_item(batch_of(logits()[:, :1], logits()[:, 0]))


def test_a_fit_lowers_it():
    assert_a_fit_lowers(MSE())


def numbers(shape):
    """A sampler for the kit: outputs of this shape per item, and numbers to be met."""

    def sample(size, generator):
        batch = outputs(shape)(size, generator)
        batch.teacher = None
        batch.labels = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
        return batch

    return sample


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
def test_the_kit_accepts_labels(shape):
    check_loss(MSE, target="labels", sample=numbers(shape))


@pytest.mark.parametrize(
    ("outputs_of", "labels"),
    [((6, 5), (6, 5)), ((6,), (6,)), ((6, 1), (6,)), ((6, 1), (6, 1)), ((2, 1, 3, 5), (2, 3, 5))],
)
def test_with_labels_it_is_torchs(outputs_of, labels):
    student = logits().flatten()[: torch.Size(outputs_of).numel()].view(outputs_of)
    batch = batch_of(student)
    batch.labels = logits(seed=1).flatten()[: torch.Size(labels).numel()].view(labels)
    expected = (student - batch.labels.view(outputs_of)).square()
    torch.testing.assert_close(MSE(target="labels").per_item(batch), expected)
    assert MSE(target="labels").valid(batch) is None


@pytest.mark.parametrize("labels", [(6,), (6, 4), (5, 6)])
def test_labels_of_another_shape_are_not_broadcast(labels):
    batch = batch_of(logits()[:6])
    batch.labels = torch.zeros(labels)
    with pytest.raises(kdengine.ConfigurationError, match="the loss mse needs labels of the shape"):
        MSE(target="labels").per_item(batch)


def test_a_target_that_is_none_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="target must be 'teacher', 'labels' or None"):
        MSE(target="student")
