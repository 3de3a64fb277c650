import math

import pytest
import torch

import kdengine
from kdengine.losses import CE
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, probabilities, tokens


def expected(student, targets):
    """-sum_v y_v log softmax(s)_v, one row at a time."""
    values = []
    for row, target in zip(student.tolist(), targets.tolist(), strict=True):
        total = math.log(sum(math.exp(value) for value in row))
        values.append(-sum(y * (value - total) for y, value in zip(target, row, strict=True)))
    return torch.tensor(values, dtype=torch.float64)


def one_hot(labels, classes=5):
    return torch.nn.functional.one_hot(labels, classes).double()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 0}], ids=str)
def test_the_kit_accepts_every_option(options):
    check_loss(CE, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_kit_accepts_probabilities(smoothing):
    check_loss(CE, sample=probabilities, label_smoothing=smoothing)


def test_the_kit_accepts_logits_of_tokens():
    check_loss(CE, sample=tokens(labelled=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_ids_and_their_smoothing(smoothing):
    student, labels = logits(), torch.tensor([0, 1, 2, 3, 4, 0])
    targets = (1 - smoothing) * one_hot(labels) + smoothing / 5
    value = CE(label_smoothing=smoothing).per_item(batch_of(student, labels=labels))
    torch.testing.assert_close(value, expected(student, targets), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_probabilities_and_their_smoothing(smoothing):
    student, labels = logits(), logits(seed=2).softmax(-1)
    targets = (1 - smoothing) * labels + smoothing / 5
    value = CE(label_smoothing=smoothing).per_item(batch_of(student, labels=labels))
    torch.testing.assert_close(value, expected(student, targets), atol=1e-12, rtol=1e-12)


def test_unlabelled_items_cost_nothing_and_do_not_count():
    batch = batch_of(logits(4), labels=torch.tensor([1, -100, 2, -100]))
    assert CE().valid(batch).tolist() == [True, False, True, False]
    assert CE().per_item(batch)[[1, 3]].tolist() == [0.0, 0.0]


def test_another_ignore_index():
    batch = batch_of(logits(3), labels=torch.tensor([1, 0, 2]))
    assert CE(ignore_index=0).valid(batch).tolist() == [True, False, True]


def test_a_loader_without_labels_is_an_error():
    with pytest.raises(kdengine.ConfigurationError, match="ce needs labels"):
        CE().valid(batch_of(logits()))
