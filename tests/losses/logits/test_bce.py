import math

import pytest
import torch

import kdengine
from kdengine.losses import BCE
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, tokens
from .behaviour import (
    INFINITE,
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
    evaluated,
)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def expected(student, teacher, temperature):
    """-T^2/V sum_v (p_v log q_v + (1 - p_v) log(1 - q_v))."""
    p, q = ([sigmoid(value / temperature) for value in row] for row in (teacher, student))
    terms = [-(a * math.log(b) + (1 - a) * math.log(1 - b)) for a, b in zip(p, q, strict=True)]
    return temperature**2 * sum(terms) / len(terms)


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(BCE, **options)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(BCE, sample=tokens(labelled=False))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_per_item_is_the_mean_over_labels_times_the_square_of_the_temperature(temperature):
    student, teacher = logits(), logits(seed=1)
    values = BCE(temperature).per_item(batch_of(student, teacher)).tolist()
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    assert values == pytest.approx([expected(s, t, temperature) for s, t in pairs], abs=1e-12)


def test_two_labels_by_hand():
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    value, gradient = evaluated(BCE(), student, teacher)
    assert float(value) == pytest.approx(0.5 * (-0.5 * math.log(3 / 16) + math.log(2)))
    assert gradient.tolist() == [pytest.approx([0.5 * (0.75 - 0.5), 0.0])]


def test_it_is_torchs_with_the_teachers_probabilities():
    student, teacher = logits(), logits(seed=1)
    of_torch = torch.nn.functional.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    torch.testing.assert_close(BCE().per_item(batch_of(student, teacher)), of_torch.mean(-1))


def test_equal_logits_are_the_minimum():
    assert_equality(BCE(2.0))


def test_extreme_logits_are_finite():
    assert_finite_at_extremes(BCE())


def test_masked_labels_change_nothing():
    assert_masked_classes_change_nothing(BCE(2.0))


def test_a_label_that_the_teacher_alone_masks_is_a_no():
    student, teacher = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[INFINITE, 1.0]]).double()
    value = float(evaluated(BCE(), student, teacher)[0])
    p = sigmoid(1.0)
    assert value == pytest.approx(0.5 * (math.log(2) - p * math.log(p) - (1 - p) * math.log(1 - p)))


def test_a_bad_temperature_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="bce: temperature must be a finite number above 0, got -1"):
        BCE(-1)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(BCE())


# With the labels


def several(ignored=False):
    """A sampler for the kit: logits of 5 labels, and labels 0 and 1, of which some are not known."""

    def sample(size, generator):
        batch = batch_of(torch.randn(size, 5, generator=generator, dtype=torch.float64))
        batch.labels = torch.randint(2, (size, 5), generator=generator)
        if ignored:
            batch.labels[::2, 1:3] = batch.labels[1::4] = -100
        return batch

    return sample


class OfLabels(BCE):
    """With labels there is no temperature to schedule."""

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__(target="labels", ignore_index=ignore_index)


def test_the_kit_accepts_labels():
    for ignored in (False, True):
        check_loss(OfLabels, sample=several(ignored))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int32, torch.bool])
def test_with_labels_it_is_torchs(dtype):
    student = logits()
    batch = batch_of(student)
    batch.labels = (logits(seed=1) > 0).to(dtype)
    of_torch = torch.nn.functional.binary_cross_entropy_with_logits(student, batch.labels.double(), reduction="none")
    loss = BCE(target="labels")
    loss.inspect(batch)
    torch.testing.assert_close(loss.per_item(batch), of_torch.mean(-1))


def test_labels_that_are_not_known_do_not_count():
    student = logits()
    batch = batch_of(student)
    batch.labels = (logits(seed=1) > 0).double()
    batch.labels[0, 1:], batch.labels[1] = -100, -100
    value = torch.nn.functional.binary_cross_entropy_with_logits(student[0, 0], batch.labels[0, 0])
    values, valid = BCE(target="labels").per_item(batch), BCE(target="labels").valid(batch)
    assert float(values[0]) == pytest.approx(float(value))
    assert valid.tolist() == [True, False, *[True] * (len(student) - 2)]


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_one_logit_per_item_takes_a_label_per_item(shape):
    student = logits().flatten()[:6].view(shape)
    batch = batch_of(student)
    batch.labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    of_torch = torch.nn.functional.binary_cross_entropy_with_logits(student.flatten(), batch.labels.double())
    assert float(BCE(target="labels").per_item(batch).mean()) == pytest.approx(float(of_torch))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.full((6, 5), 255), "from 0 to 1.*from 255 to 255"),
        (torch.full((6, 5), -1.0), "from 0 to 1"),
        (torch.zeros(6), r"shape of the student's outputs, \(6, 5\)"),
        (torch.zeros(6, 4), r"shape of the student's outputs, \(6, 5\)"),
    ],
)
def test_labels_that_are_none_are_refused(labels, said):
    batch = batch_of(logits()[:6])
    batch.labels = labels
    with pytest.raises(kdengine.ConfigurationError, match=said):
        BCE(target="labels").inspect(batch)


def test_arguments_that_do_not_fit_labels_are_refused():
    with pytest.raises(kdengine.ConfigurationError, match="target must be 'teacher', 'labels' or None"):
        BCE(target="label")
    with pytest.raises(kdengine.ConfigurationError, match="labels have no temperature"):
        BCE(temperature=2.0, target="labels")
