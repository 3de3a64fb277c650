"""What an evaluation measures: one number over the data, or words that say why not."""

from __future__ import annotations

import warnings

import pytest
import torch

import kdengine
from kdengine.engine.metrics import as_numbers
from kdengine.losses import CE
from tests.engine.common import CLASSES, INPUTS, mlp, sgd

GENERATOR = torch.Generator().manual_seed(3)
X, Y = torch.randn(30, INPUTS, generator=GENERATOR), torch.randint(CLASSES, (30,), generator=GENERATOR)
BATCHES = list(zip(X.split(8), Y.split(8), strict=True))  # the last has 6 items
HALF = [(x, torch.where(torch.arange(len(y)) % 3 > 0, y, -100)) for x, y in BATCHES]


def hit(logits, labels):
    return logits.argmax(-1) == labels


def measured(batches, student=None, **metrics):
    made = kdengine.Engine(student or mlp(), losses=[CE()], optimizer=sgd, loggers=[], metrics=metrics, device="cpu")
    return made.evaluate(batches)


def silently(*args, **metrics):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return measured(*args, **metrics)


@pytest.mark.parametrize(
    "fn",
    [
        hit,
        lambda logits, labels: hit(logits, labels).float().mean(),
        lambda logits, labels: hit(logits, labels).float().mean().item(),
        lambda logits, labels: hit(logits, labels).tolist(),
        lambda logits, labels: hit(logits, labels).float().mean().reshape(1),
    ],
)
@pytest.mark.parametrize("batches", [BATCHES, HALF], ids=["labelled", "half labelled"])
def test_a_function_counts_the_items_that_top1_counts(fn, batches):
    values = silently(batches, mine=fn, top1="top1")
    assert values["top1"] not in (0.0, 1.0)
    assert values["mine"] == pytest.approx(values["top1"], rel=1e-6)


def test_items_that_the_mask_leaves_out_count_nowhere():
    masked = [kdengine.Batch(x, y, mask=torch.arange(len(y)) % 2 > 0) for x, y in BATCHES]
    kept = [(x[1::2], y[1::2]) for x, y in BATCHES]
    assert silently(masked, mine=hit)["mine"] == pytest.approx(silently(kept, mine=hit)["mine"], rel=1e-6)


def test_a_batch_without_a_label_is_not_shown_to_a_function():
    none = torch.full_like(Y[:8], -100)
    assert silently([*BATCHES, (X[:8], none)], mine=hit) == silently(BATCHES, mine=hit)
    assert silently([(X[:8], none)], mine=hit) == {"mine": None}


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(7, CLASSES)

    def forward(self, ids):
        return self.embed(ids)


def test_of_tokens_the_padded_positions_are_left_out():
    ids = torch.randint(7, (6, 9), generator=GENERATOR)
    labels = torch.randint(CLASSES, (6, 9), generator=GENERATOR)
    labels[:, 5:] = -100
    labels[2, 1:] = -100
    batches = [(ids[:4], labels[:4]), (ids[4:, :7], labels[4:, :7])]
    values = silently(batches, Tokens(), mine=hit, top1="top1")
    assert values["mine"] == pytest.approx(values["top1"], rel=1e-6)


def recall_of_class_2(logits, labels):
    return hit(logits, labels)[labels == 2]


def test_a_function_that_looks_at_some_items_is_averaged_over_those():
    said = mlp()(X).argmax(-1)
    expected = (said == 2)[Y == 2].float().mean().item()
    assert expected not in (0.0, 1.0)
    assert silently(BATCHES, recall=recall_of_class_2)["recall"] == pytest.approx(expected, rel=1e-6)


def macro_recall(logits, labels):
    said = logits.argmax(-1)
    return torch.stack([(said == k)[labels == k].float().sum() / (labels == k).sum().clamp(min=1) for k in range(5)])


@pytest.mark.parametrize(
    "fn",
    [
        lambda logits, labels: macro_recall(logits, labels).mean(),
        lambda logits, labels: hit(logits, labels).sum(),
        lambda logits, labels: logits.max(-1).values.median(),
        lambda logits, labels: logits.std(),
    ],
    ids=["macro recall", "a sum", "a median", "a deviation"],
)
def test_a_number_for_the_whole_batch_that_is_no_mean_is_warned_of_once(fn):
    with pytest.warns(
        UserWarning, match=r"'mine' returns a number for the whole batch.*update.*torchmetrics"
    ) as caught:
        measured(BATCHES, mine=fn)
    assert len(caught) == 1


def test_a_value_for_each_class_is_warned_of():
    with pytest.warns(UserWarning, match="5 values for a batch of 8 items, one for each class"):
        measured(BATCHES, mine=macro_recall)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"top1": 0.5}, "returned a dict"),
        ("0.5", "returned a str"),
        (None, "returned None"),
        ((3, 8), "returned a tuple"),
    ],
)
def test_a_function_that_returns_no_numbers_of_items_is_refused(value, said):
    with pytest.raises(kdengine.ConfigurationError, match=f"'mine' {said} for a batch of 8 items"):
        measured(BATCHES, mine=lambda logits, labels: value)


class Collects:
    """An object like those of torchmetrics: sees everything before it computes."""

    def __init__(self, result, higher_is_better=None):
        self.result, self.higher_is_better = result, higher_is_better
        self.reset()

    def reset(self):
        self.said, self.labels = [], []

    def update(self, logits, labels):
        self.said.append(logits.argmax(-1))
        self.labels.append(labels)

    def compute(self):
        return self.result(torch.cat(self.said), torch.cat(self.labels))


def accuracy(said, labels):
    return (said == labels).float().mean()


def test_an_object_sees_labelled_items_only_and_may_give_a_mapping():
    def both(said, labels):
        return {
            "accuracy": accuracy(said, labels),
            "per_class": {"0": accuracy(said[labels == 0], labels[labels == 0])},
        }

    values = silently(HALF, mine=Collects(both), top1="top1")
    assert list(values) == ["mine.accuracy", "mine.per_class.0", "top1"]
    assert values["mine.accuracy"] == pytest.approx(values["top1"], rel=1e-6)


class OneForEachClass(Collects):
    def reset(self):
        self.hits = torch.zeros(CLASSES)

    def update(self, logits, labels):
        self.hits += torch.bincount(labels[hit(logits, labels)], minlength=CLASSES)

    def compute(self):
        return self.hits


def test_an_object_that_gives_a_vector_is_refused_before_it_is_used():
    with pytest.raises(kdengine.ConfigurationError, match=r"'mine' gives a tensor of shape \(5,\).*average='macro'"):
        measured(BATCHES, mine=OneForEachClass(None))


@pytest.mark.parametrize("value", [torch.zeros(3), [0.1, 0.2], "0.5", (torch.ones(2), torch.ones(2)), object()])
def test_what_is_no_number_is_refused_with_its_kind(value):
    with pytest.raises(kdengine.ConfigurationError, match=r"gives a .*; expected one number, or a mapping"):
        as_numbers("mine", value)


def test_numbers_of_any_kind_are_numbers():
    assert as_numbers("", {"a": True, "b": None, "c": torch.tensor([2])}) == {"a": 1.0, "b": None, "c": 2.0}


def test_metrics_may_be_a_list_or_one():
    for given, names in (
        (["top1", "builtin:top5"], ["top1", "top5"]),
        ("top1", ["top1"]),
        ([hit, Collects(accuracy)], ["hit", "collects"]),
    ):
        made = kdengine.Engine(mlp(), losses=[CE()], loggers=[], metrics=given, device="cpu")
        assert list(made.evaluate(BATCHES)) == names


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["top1", "top1"], "two metrics are called 'top1'"),
        ([lambda logits, labels: 0.0], "a lambda has no name"),
        ({"mine": Collects}, r"the class Collects, which cannot be made without arguments.*Collects\(...\)"),
        ({"mine": 0.5}, "is a float"),
        (3, "is a int"),
    ],
)
def test_what_is_no_metric_is_refused(metrics, said):
    with pytest.raises(kdengine.ConfigurationError, match=said):
        kdengine.Engine(mlp(), losses=[CE()], loggers=[], metrics=metrics)
