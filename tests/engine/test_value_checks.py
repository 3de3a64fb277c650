"""What a loss returns is checked the first time; a loss that raises is named, with where its code comes from."""

import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kdengine
from kdengine.api.errors import LossFailedError
from kdengine.losses import CE, KD
from tests.engine.common import engine, items, mlp

X, Y = items(16).tensors


class Given(kdengine.Loss):
    """Returns what a function makes of the batch."""

    def __init__(self, make, needs=None, terms=("loss",), valid=None):
        super().__init__()
        self.make, self.terms, self.mask = make, terms, valid
        self.needs = needs or kdengine.Needs(teacher=False, labels=True)

    def valid(self, batch):
        return super().valid(batch) if self.mask is None else self.mask(batch)

    def per_item(self, batch):
        return self.make(batch)


class Whole(Given):
    scope = "batch"

    def value(self, batch):
        return self.make(batch)


def both_ways(loss, said):
    for run in (lambda e: e.objective((X, Y)), lambda e: e.fit([(X, Y)], epochs=1)):
        with pytest.raises(kdengine.LossError, match=rf"^losses\.mine: {said}") as caught:
            run(engine(losses={"mine": loss}, weights={}))
    return caught.value


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda b: F.cross_entropy(b.student.logits, b.labels), r"Given\.per_item returned a tensor \(\) .*16 items"),
        (lambda b: F.cross_entropy(b.student.logits, b.labels).view(1), r"Given\.per_item returned a tensor \(1,\)"),
        (
            lambda b: b.student.logits.mean(0),
            r"Given\.per_item returned a tensor \(5,\).*a value for each",
        ),
        (lambda b: b.student.logits.t(), r"Given\.per_item returned a tensor \(5, 16\)"),
        (lambda b: [b.student.logits], r"Given\.per_item returned a list"),
        (lambda b: {"other": b.student.logits}, r"Given\.per_item returned the terms \['other'\].*declares loss"),
    ],
)
def test_values_that_are_not_per_item_are_refused(make, said):
    both_ways(Given(make), said)


def test_values_that_do_not_fit_their_mask_are_refused():
    rows = Given(lambda b: b.student.logits.sum(-1), valid=lambda b: torch.ones(16, 5, dtype=torch.bool))
    both_ways(rows, r"Given\.per_item returned a tensor \(16,\).*mask \(16, 5\)")


def test_a_term_that_is_missing_is_named():
    both_ways(Given(lambda b: {"a": b.student.logits}, terms=("a", "b")), r".*terms \['a'\].*declares b too")


def test_a_value_of_scope_batch_that_is_no_scalar_is_refused():
    both_ways(Whole(lambda b: b.student.logits.sum(-1)), r"Whole\.value returned a tensor \(16,\).*0-dim")


@pytest.mark.parametrize("fn", [F.mse_loss, F.l1_loss, F.smooth_l1_loss])
def test_outputs_broadcast_against_targets_are_refused(fn):
    def loss(target):
        return kdengine.from_callable(lambda s, t: fn(s, t, reduction="none"), target)

    student, numbers = mlp(classes=1), torch.randn(16)
    for data in ((X, numbers), (X[:7], numbers[:7])):
        with pytest.raises(kdengine.LossError, match=r"^losses\.mine: .*and the labels \((16|7),\) were broadcast"):
            engine(student, losses={"mine": loss("labels")}, weights={}).objective(data)
    column = engine(student, losses={"mine": loss("labels")}, weights={}).objective((X, numbers[:, None]))
    assert column.item() == pytest.approx(fn(student(X), numbers[:, None]).item(), rel=1e-5)


def test_outputs_broadcast_in_a_loss_of_ones_own_are_refused():
    own = Given(lambda b: (b.student.logits - b.labels).square())
    with pytest.raises(kdengine.LossError, match="were broadcast to"):
        engine(mlp(classes=1), losses={"mine": own}, weights={}).objective((X, torch.randn(16)))


# Losses that raise


def boom(batch):
    raise RuntimeError("size mismatch")


def test_a_loss_that_raises_is_named_with_file_line_and_step():
    late = iter(range(10))

    def second(batch):
        return boom(batch) if next(late) else batch.student.logits.sum(-1)

    with pytest.raises(LossFailedError) as caught:
        engine(losses={"mine": Given(second)}, weights={}).fit([(X, Y)] * 3, epochs=1)
    error = caught.value
    said = rf"losses\.mine: Given \({__file__}\) raised RuntimeError at test_value_checks\.py:\d+: size mismatch"
    assert error.step == 2
    assert re.fullmatch(rf"{said} \(at step 2\)", str(error))
    assert isinstance(error.__cause__, RuntimeError)
    assert error.plugin == __file__
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("method", ["valid", "end_step", "weighted_sum", "inspect"])
def test_whatever_part_of_a_loss_raises_its_label_is_said(method):
    loss = type("Bad", (CE,), {method: lambda self, *_: {}["nothing"]})()
    with pytest.raises(kdengine.LossError, match=r"^losses\.mine: Bad .*raised KeyError"):
        engine(losses={"mine": loss}, weights={}).fit([(X, Y)], epochs=1)


def test_a_criterion_that_raises_is_named_by_its_function():
    def criterion(logits, labels):
        return boom(logits)

    error = both_ways(kdengine.from_callable(criterion, "labels"), r".*criterion \(.*raised RuntimeError")
    assert error.__cause__ is not None


def test_running_out_of_memory_keeps_its_class():
    def greedy(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        engine(losses={"mine": Given(greedy)}, weights={}).fit([(X, Y)], epochs=1)
    assert caught.value.__notes__ == ["raised by losses.mine"]


# Items without a label


class Plain(kdengine.Loss):
    """A loss of one's own that knows nothing of unlabelled items."""

    def __init__(self, ignore_index=None, **needs):
        super().__init__()
        if ignore_index is not None:
            self.ignore_index = ignore_index
        self.needs = kdengine.Needs(teacher=False, labels=True, **needs)

    def per_item(self, batch):
        ignore = getattr(self, "ignore_index", -100)
        logits = batch.student.logits.movedim(-1, 1)
        return F.cross_entropy(logits, batch.labels, reduction="none", ignore_index=ignore)


@pytest.mark.parametrize("ignore", [None, 0])
def test_unlabelled_items_do_not_count_by_default(ignore):
    labels = Y.clone()
    labels[::2] = -100 if ignore is None else ignore
    student = mlp()
    expected = F.cross_entropy(student(X), labels, ignore_index=-100 if ignore is None else ignore).item()
    value = engine(student, losses={"mine": Plain(ignore)}, weights={}).objective((X, labels)).item()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ignore", [-100, 2])
def test_what_a_criterion_ignores_does_not_count(ignore):
    labels = Y.clone()
    labels[:5] = ignore
    student, criterion = mlp(), nn.CrossEntropyLoss(reduction="none", ignore_index=ignore)
    loss = kdengine.from_callable(criterion, "labels")
    expected = F.cross_entropy(student(X), labels, ignore_index=ignore).item()
    value = engine(student, losses={"mine": loss}, weights={}).objective((X, labels)).item()
    assert value == pytest.approx(expected, rel=1e-5)


def test_positions_count_where_exclusive_classes_are_declared_and_items_elsewhere():
    student = nn.Linear(3, 5)
    inputs, labels = torch.randn(4, 6, 3), torch.randint(5, (4, 6))
    labels[0], labels[1, 2:] = -100, -100
    of_positions = F.cross_entropy(student(inputs).flatten(0, 1), labels.flatten()).item()
    declared = engine(student, losses={"mine": Plain(classes="exclusive")}, weights={})
    assert declared.objective((inputs, labels)).item() == pytest.approx(of_positions, rel=1e-5)
    values = F.cross_entropy(student(inputs).movedim(-1, 1), labels, reduction="none").mean(1)
    plain = engine(student, losses={"mine": Plain()}, weights={}).objective((inputs, labels)).item()
    assert plain == pytest.approx(values[1:].mean().item(), rel=1e-5)


def test_numbers_that_are_no_class_ids_all_count():
    targets = torch.zeros(16, 5)
    squares = Given(lambda b: (b.student.logits - b.labels).square())
    student = mlp()
    value = engine(student, losses={"mine": squares}, weights={}).objective((X, targets)).item()
    assert value == pytest.approx(student(X).square().mean().item(), rel=1e-5)


def test_probability_rows_of_zeros_do_not_count_for_exclusive_classes():
    targets = torch.rand(16, 5).softmax(-1)
    targets[3:] = 0.0
    student = mlp()
    loss = Given(lambda b: -(b.labels * b.student.logits.log_softmax(-1)).sum(-1))
    loss.needs = kdengine.Needs(teacher=False, labels=True, classes="exclusive")
    value = engine(student, losses={"mine": loss}, weights={}).objective((X, targets)).item()
    assert value == pytest.approx(F.cross_entropy(student(X[:3]), targets[:3]).item(), rel=1e-5)


def test_losses_that_read_no_labels_count_every_item():
    labels = torch.full((16,), -100)
    assert engine(losses={"mine": KD()}, weights={}).objective((X, labels)).item() > 0


@pytest.mark.parametrize(
    ("valid", "said"),
    [
        (lambda b: {"los": None}, "has a mask for 'los', which is no term; did you mean 'loss'"),
        (lambda b: torch.ones(15, dtype=torch.bool), r"returned a tensor \(15,\) bool for a batch of 16 items"),
        (lambda b: torch.tensor(True), r"returned a tensor \(\) bool"),
        (lambda b: [True] * 16, "returned a list of 16"),
    ],
)
def test_a_mask_that_is_none_of_the_items_is_refused(valid, said):
    both_ways(Given(lambda b: b.student.logits.sum(-1), valid=valid), rf"Given\.valid {said}")


def test_what_a_loss_means_for_those_who_catch_it_passes_as_it_is():
    class Pruned(Exception):
        """What a search raises to end a trial."""

    class Prunes(CE):
        kdengine_passes = Pruned

        def per_item(self, batch):
            raise Pruned("enough")

    with pytest.raises(Pruned, match="enough") as caught:
        engine(losses={"mine": Prunes()}, weights={}).fit([(X, Y)], epochs=1)
    assert caught.value.__notes__ == ["raised by losses.mine"]
