"""Builtin metrics against plain computations."""

import math

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from kdengine.api import Batch, ConfigurationError, Output
from kdengine.metrics.agreement import Agreement
from kdengine.metrics.calibration import CalibrationError
from kdengine.metrics.topk import Top1, Top5, TopK


def batch(logits, labels=None, teacher=None, mask=None):
    made = Batch(torch.zeros(len(logits), 1), labels, mask=mask)
    made.student = Output(logits, logits)
    if teacher is not None:
        made.teacher = Output(teacher, teacher)
    return made


def measure(metric, *batches):
    metric.reset()
    for item in batches:
        metric.update(item)
    return metric.compute()


@pytest.fixture
def draw():
    torch.manual_seed(0)
    return torch.randn(200, 12), torch.randint(12, (200,))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_topk_is_sklearns(draw, k):
    logits, labels = draw
    expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k)
    assert measure(TopK(k), batch(logits, labels)) == pytest.approx(expected)


def test_topk_does_not_depend_on_the_split(draw):
    logits, labels = draw
    parts = [batch(x, y) for x, y in zip(logits.split(7), labels.split(7), strict=True)]
    assert measure(Top1(), *parts) == measure(Top1(), batch(logits, labels))


def test_top5_of_fewer_classes_counts_everything():
    assert measure(Top5(), batch(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))) == 1.0


def test_unlabelled_and_masked_items_are_left_out():
    logits = torch.eye(4) * 5
    labels = torch.tensor([0, -100, 0, 3])
    mask = torch.tensor([True, True, True, False])
    assert measure(Top1(), batch(logits, labels, mask=mask)) == 0.5
    assert measure(Top1(ignore_index=0), batch(logits, torch.tensor([0, 1, 0, 2]))) == 0.5


def test_probability_labels_count_by_their_argmax_unless_zero():
    labels = torch.tensor([[0.9, 0.1], [0.0, 0.0], [0.4, 0.6]])
    assert measure(Top1(), batch(torch.tensor([[2.0, 0.0]] * 3), labels)) == 0.5


def test_integer_probabilities_shaped_like_logits_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(3, 2\).*\(3, 2\) torch.int64"):
        measure(Top1(), batch(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.long)))


def test_tokens_count_one_by_one(draw):
    logits, labels = draw
    labels = torch.where(torch.arange(200) % 3 == 0, -100, labels)
    shaped = batch(logits.view(20, 10, 12), labels.view(20, 10), mask=torch.arange(20) < 15)
    flat = batch(logits[:150], labels[:150])
    for metric in (Top1(), Top5(), CalibrationError()):
        assert measure(metric, shaped) == pytest.approx(measure(metric, flat))


@pytest.mark.parametrize("metric", [Top1(), Top5(), CalibrationError(), Agreement()])
def test_nothing_to_count_is_undefined(metric):
    logits = torch.randn(3, 4)
    assert measure(metric) is None
    assert measure(metric, batch(logits, torch.full((3,), -100), logits, mask=torch.zeros(3, dtype=torch.bool))) is None
    if not metric.needs_teacher:
        assert measure(metric, batch(logits)) is None
        assert measure(metric, batch(logits, torch.full((3,), -100))) is None


def test_reset_forgets(draw):
    metric = Top1()
    measure(metric, batch(*draw))
    assert measure(metric, batch(torch.eye(2), torch.tensor([0, 0]))) == 0.5


def test_a_row_of_nan_is_never_a_hit():
    logits = torch.tensor([[math.nan, 0.0], [1.0, 0.0]])
    assert measure(Top1(), batch(logits, torch.tensor([0, 0]))) == 0.5
    assert measure(Agreement(), batch(logits, teacher=logits)) == 0.5


def test_agreement_compares_argmax_and_needs_no_label(draw):
    student, _ = draw
    teacher = student + torch.randn(200, 12)
    expected = (student.argmax(-1) == teacher.argmax(-1)).double().mean().item()
    assert measure(Agreement(), batch(student, teacher=teacher)) == pytest.approx(expected)
    assert measure(Agreement(), batch(student, torch.full((200,), -100), teacher)) == pytest.approx(expected)
    assert Agreement.needs_teacher


def test_agreement_leaves_out_padding_within_an_item():
    student = torch.eye(2).expand(3, 2, 2)  # says 0, then 1
    teacher = torch.tensor([1.0, 0.0]).expand(3, 2, 2)  # says 0 twice
    labels = torch.tensor([[0, -100]] * 3)
    assert measure(Agreement(), batch(student, None, teacher)) == 0.5
    assert measure(Agreement(), batch(student, labels, teacher)) == 1.0


def plain_calibration_error(logits, labels, bins):
    """Equation 3 of Guo et al. 2017, bin by bin."""
    probabilities = [torch.softmax(row.double(), 0) for row in logits]
    total = 0.0
    for m in range(1, bins + 1):
        members = [
            (float(p.max()), int(p.argmax()) == int(y))
            for p, y in zip(probabilities, labels, strict=True)
            if (m - 1) / bins < float(p.max()) <= m / bins
        ]
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            accuracy = sum(hit for _, hit in members) / len(members)
            total += len(members) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_equation_3(draw, bins):
    logits, labels = draw
    labels = torch.where(torch.rand(200) < 0.5, logits.argmax(-1), labels)
    parts = [batch(x, y) for x, y in zip((3 * logits).split(64), labels.split(64), strict=True)]
    expected = plain_calibration_error(3 * logits, labels, bins)
    assert measure(CalibrationError(bins), *parts) == pytest.approx(expected, abs=1e-6)


def test_certain_and_right_is_calibrated():
    assert measure(CalibrationError(), batch(torch.eye(3) * 200, torch.arange(3))) == pytest.approx(0.0)
    assert not CalibrationError.higher_is_better


def test_calibration_error_refuses_no_bins():
    with pytest.raises(ConfigurationError, match="at least 1 bin"):
        CalibrationError(0)


@pytest.mark.parametrize("metric", [Top1(), Top5(), CalibrationError(), Agreement()])
def test_no_update_reads_a_value_back(metric):
    """On the meta device any read of a value raises, so an update that runs there never waits."""
    logits = torch.randn(8, 6, device="meta")
    labels = torch.zeros(8, dtype=torch.long, device="meta")
    item = batch(logits, labels, logits, mask=torch.ones(8, dtype=torch.bool, device="meta"))
    metric.reset()
    metric.update(item)
    metric.update(item)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "5"])
def test_topk_looks_at_a_whole_number_of_logits(k):
    with pytest.raises(ConfigurationError, match="whole number of logits"):
        TopK(k)
