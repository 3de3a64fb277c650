import math

import pytest
import torch

import kdengine
from kdengine.losses import KD
from kdengine.testing import check_loss

from ..outputs import batch_of, logits, probabilities, tokens
from .behaviour import (
    assert_a_fit_lowers,
    assert_equality,
    assert_finite_at_extremes,
    assert_masked_classes_change_nothing,
)


def softened(row, temperature):
    weights = [math.exp(value / temperature) for value in row]
    return [value / sum(weights) for value in weights]


def forward_kl(student, teacher, temperature):
    """T^2 sum_v p_t (log p_t - log p_s), Hinton et al. 2015, one row at a time."""
    values = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softened(t, temperature), softened(s, temperature)
        values.append(temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))
    return torch.tensor(values, dtype=torch.float64)


def cross_entropy(student, labels):
    return torch.tensor(
        [-math.log(softened(s, 1.0)[y]) if y >= 0 else 0.0 for s, y in zip(student.tolist(), labels, strict=True)],
        dtype=torch.float64,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.5},
        {"divergence": "reverse_kl"},
        {"divergence": "jsd", "beta": 0.3},
        {"hard_weight": 0.4},
        {"hard_weight": 0.4, "label_smoothing": 0.1},
        {"hard_weight": 0.4, "ignore_index": 0},
        {"hard_weight": 0.4, "divergence": "jsd"},
    ],
    ids=str,
)
def test_the_kit_accepts_every_option(options):
    check_loss(KD, **options)


def test_the_kit_accepts_probabilities_as_labels():
    check_loss(KD, sample=probabilities, hard_weight=0.5)


@pytest.mark.parametrize("options", [{}, {"hard_weight": 0.5}], ids=str)
def test_the_kit_accepts_logits_of_tokens(options):
    check_loss(KD, sample=tokens(bool(options)), **options)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_per_item_is_the_papers_formula_with_its_square(temperature):
    student, teacher = logits(), logits(seed=1)
    value = KD(temperature=temperature).per_item(batch_of(student, teacher))
    torch.testing.assert_close(value, forward_kl(student, teacher, temperature), atol=1e-12, rtol=1e-12)


def test_gradients_keep_their_size_when_the_temperature_rises():
    sizes = []
    for temperature in (10.0, 100.0):
        student = logits().requires_grad_()
        KD(temperature=temperature).per_item(batch_of(student, logits(seed=1))).sum().backward()
        sizes.append(float(student.grad.norm()))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_equal_logits_cost_nothing(divergence):
    assert_equality(KD(divergence=divergence), tolerance=0.0)


def test_with_a_hard_term_nothing_is_claimed_of_equal_logits():
    assert KD(hard_weight=0.1).at_equality is None


@pytest.mark.parametrize("options", [{}, {"hard_weight": 0.4}], ids=str)
def test_extreme_logits_are_finite(options):
    assert_finite_at_extremes(KD(**options))


@pytest.mark.parametrize("options", [{}, {"hard_weight": 0.4}], ids=str)
def test_masked_classes_change_nothing(options):
    assert_masked_classes_change_nothing(KD(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "a temperature above 0, got 0.0"),
        ({"hard_weight": -0.1}, "a hard_weight of at least 0, got -0.1"),
        ({"beta": 1.0}, "a beta strictly between 0 and 1, got 1.0"),
        ({"label_smoothing": 2.0}, "a label_smoothing from 0 to 1, got 2.0"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(options, message):
    with pytest.raises(kdengine.ConfigurationError, match=f"kd needs {message}"):
        KD(**options)


def test_a_fit_lowers_it():
    assert_a_fit_lowers(KD())


def test_the_hard_term_is_the_weighted_cross_entropy_of_labelled_items():
    student, teacher = logits(), logits(seed=1)
    labels = torch.tensor([0, -100, 2, 4, -100, 1])
    loss, batch = KD(temperature=2.0, hard_weight=0.3), batch_of(student, teacher, labels)
    values = loss.per_item(batch)
    torch.testing.assert_close(values["soft"], forward_kl(student, teacher, 2.0))
    torch.testing.assert_close(values["hard"], 0.3 * cross_entropy(student, labels.tolist()))
    assert loss.valid(batch)["soft"] is None
    assert loss.valid(batch)["hard"].tolist() == [True, False, True, True, False, True]


def test_a_row_of_zero_probabilities_is_unlabelled():
    labels = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5])
    assert KD(hard_weight=1.0).valid(batch_of(logits(2), logits(2), labels))["hard"].tolist() == [True, False]


def test_a_fit_logs_both_terms_and_counts_unlabelled_items_in_the_soft_one_only():
    student, teacher = logits(4).float(), logits(4, seed=1).float()
    labels = torch.tensor([1, -100, -100, 3])
    engine = kdengine.Engine(
        Fixed(student),
        Fixed(teacher),
        losses=KD(temperature=2.0, hard_weight=0.5),
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
        loggers=[],
    )
    means = engine.train_step([(torch.arange(4.0), labels)])
    assert means["kd.soft"] == pytest.approx(float(forward_kl(student, teacher, 2.0).mean()), rel=1e-5)
    expected = 0.5 * float(cross_entropy(student, labels.tolist()).sum()) / 2
    assert means["kd.hard"] == pytest.approx(expected, rel=1e-5)
    assert means["loss"] == pytest.approx(means["kd.soft"] + means["kd.hard"])


def test_without_a_hard_weight_labels_are_not_needed():
    assert not KD().needs.labels
    assert KD(hard_weight=kdengine.Linear(1.0, 0.0)).needs.labels
    with pytest.raises(kdengine.ConfigurationError, match="needs labels"):
        KD(hard_weight=1.0).per_item(batch_of(logits(), logits()))


class Fixed(torch.nn.Module):
    """Gives the same logits whatever comes."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(values.clone())

    def forward(self, inputs):
        return self.values
