"""Weights of items: every term is the weighted mean over the items of an optimizer step, however the step is split."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kdengine
from kdengine.data.mixing import MixUp, blend_weights
from kdengine.engine.batching import concatenate, split, take, uncounted
from kdengine.engine.evaluate import unlabelled
from kdengine.losses import CE, KD, RKD
from tests.engine.common import CLASSES, engine, flat, items, mlp

DOUBLE = torch.float64


def weighted(inputs, labels, weights) -> kdengine.Batch:
    return kdengine.Batch(inputs, labels, weights=weights)


def data(count: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs, labels = items(count, DOUBLE).tensors
    return inputs, labels, torch.linspace(0.0, 2.0, count, dtype=DOUBLE)


def objective(batch, losses, **options) -> float:
    student, teacher = mlp(dtype=DOUBLE), mlp(32, dtype=DOUBLE)
    return engine(student, teacher, losses=losses, weights={}, **options).objective(batch).item()


def test_a_term_is_the_weighted_mean_of_its_values():
    inputs, labels, weights = data()
    values = F.cross_entropy(mlp(dtype=DOUBLE)(inputs), labels, reduction="none")
    expected = ((weights * values).sum() / weights.sum()).item()
    assert objective(weighted(inputs, labels, weights), {"ce": CE()}) == pytest.approx(expected, rel=1e-12)


def test_weights_of_zero_and_one_give_the_mean_over_the_items_that_count():
    inputs, labels, _ = data()
    kept = torch.arange(12) % 3 == 0
    losses = {"kd": KD(temperature=2.0, hard_weight=0.5)}
    alone = objective((inputs[kept], labels[kept]), losses)
    assert objective(weighted(inputs, labels, kept.double()), losses) == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("losses", [{"ce": CE()}, {"kd": KD(hard_weight=1.0)}, {"rkd": RKD(student="0", teacher="0")}])
def test_equal_weights_change_nothing(losses):
    inputs, labels, weights = data()
    alike = weighted(inputs, labels, torch.full_like(weights, 0.3))
    assert objective(alike, losses) == pytest.approx(objective((inputs, labels), losses), rel=1e-12)


def test_an_unlabelled_item_takes_its_weight_out_of_the_divisor_too():
    inputs, labels, weights = data()
    hidden = labels.clone()
    hidden[::2] = -100
    odd = slice(1, None, 2)
    alone = objective(weighted(inputs[odd], labels[odd], weights[odd]), {"ce": CE()})
    assert objective(weighted(inputs, hidden, weights), {"ce": CE()}) == pytest.approx(alone, rel=1e-12)


class Positions(kdengine.Loss):
    """Values and a mask ``(B, T)``, with T the classes."""

    needs = kdengine.Needs(teacher=False)

    def valid(self, batch):
        return batch.inputs[:, :CLASSES] > 0

    def per_item(self, batch):
        return batch.student.logits.square()


def test_positions_of_an_item_have_its_weight():
    inputs, labels, weights = data()
    values, valid = mlp(dtype=DOUBLE)(inputs).square(), inputs[:, :CLASSES] > 0
    each = weights[:, None] * valid
    expected = ((each * values).sum() / each.sum()).item()
    assert objective(weighted(inputs, labels, weights), [Positions()]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [[12], [5, 7], [1, 4, 4, 3]])
def test_no_split_into_micro_batches_changes_a_weighted_step(sizes):
    inputs, labels, weights = data()
    student = mlp(dtype=DOUBLE)
    parts = [weighted(*part) for part in zip(*(each.split(sizes) for each in data()), strict=True)]
    trained = engine(student, mlp(32, dtype=DOUBLE), accumulate=len(parts))
    trained.fit(parts, epochs=1)
    whole = mlp(dtype=DOUBLE)
    engine(whole, mlp(32, dtype=DOUBLE)).fit([weighted(inputs, labels, weights)], epochs=1)
    torch.testing.assert_close(flat(student), flat(whole), rtol=1e-12, atol=0.0)


class Broken(nn.Module):
    """A teacher whose first item is NaN."""

    def __init__(self):
        super().__init__()
        self.net = mlp(32, dtype=DOUBLE)

    def forward(self, inputs):
        first = (torch.arange(len(inputs)) == 0).unsqueeze(-1)
        return torch.where(first, torch.nan, self.net(inputs))


def test_what_has_no_weight_cannot_poison_a_step():
    inputs, labels, _ = data()
    weights = (torch.arange(12) > 0).double()
    student = mlp(dtype=DOUBLE)
    losses = {"kd": KD(), "mse": kdengine.from_callable(nn.MSELoss(reduction="none"))}
    trained = engine(student, Broken(), losses=losses, weights={})
    assert trained.fit([weighted(inputs, labels, weights)], epochs=1).history[-1]["loss"] > 0
    assert torch.isfinite(flat(student)).all()


def test_a_loss_that_compares_items_leaves_out_those_without_weight_and_refuses_to_weigh():
    inputs, labels, weights = data()
    losses = {"rkd": RKD(student="0", teacher="0")}
    kept = torch.arange(12) < 7
    alone = objective((inputs[:7], labels[:7]), losses)
    assert objective(weighted(inputs, labels, kept * 0.5), losses) == pytest.approx(alone, rel=1e-12)
    with pytest.raises(kdengine.ConfigurationError, match=r"losses.rkd: .*all equal or 0, got 0.18.* to 2.0"):
        objective(weighted(inputs, labels, weights), losses)


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
def test_weights_that_are_none_are_refused(bad):
    inputs, labels, weights = data()
    weights[3] = bad
    with pytest.raises(kdengine.ConfigurationError, match=f"finite and not negative, got {bad} for item 3"):
        engine().train_step([weighted(inputs.float(), labels, weights)])


@pytest.mark.parametrize("shape", [(11,), (12, 1), ()])
def test_weights_have_one_value_for_each_item(shape):
    with pytest.raises(kdengine.ConfigurationError, match="a batch of 12 items got weights that are a tensor"):
        weighted(*data()[:2], torch.ones(shape))


@pytest.mark.parametrize(("name", "said"), [("mask", "weights="), ("index", "int64")])
def test_weights_in_the_place_of_a_mask_or_an_index_are_refused(name, said):
    with pytest.raises(kdengine.ConfigurationError, match=f"got {name} that are a tensor .12,. float64; .*{said}"):
        kdengine.Batch(data()[0], **{name: data()[2]})


def test_metrics_count_every_item_alike():
    inputs, labels, weights = data()
    measured = engine(mlp(dtype=DOUBLE), metrics={"top1": "top1"})
    assert measured.evaluate([weighted(inputs, labels, weights)]) == measured.evaluate([(inputs, labels)])


def test_whatever_rebuilds_a_batch_keeps_its_weights_and_everything_else():
    batch = kdengine.Batch({"x": torch.rand(4, 3)}, torch.arange(4), torch.arange(4), weights=torch.arange(4.0))
    batch.mask, batch.epoch = torch.tensor([True, True, False, True]), 5
    pieces = split(concatenate([batch, batch]), [3, 5])
    assert [piece.weights.tolist() for piece in pieces] == [[0.0, 1.0, 2.0], [3.0, 0.0, 1.0, 2.0, 3.0]]
    for made in (*pieces, take(batch, (1, 2)), uncounted(batch), unlabelled(batch), batch.replace(size=4)):
        assert made.epoch == 5
        assert len(made.weights) == len(made.index) == len(made.mask) == len(made.inputs["x"]) == made.size
    with pytest.raises(TypeError, match="'weight', which is no attribute"):
        batch.replace(weight=1)
    with pytest.raises(kdengine.ConfigurationError, match="inputs of 2 items for a batch of 3"):
        kdengine.Batch(torch.zeros(3, 1)).replace(inputs=torch.zeros(2, 1))


def test_a_micro_batch_without_weights_or_mask_counts_in_full_beside_one_that_has_them():
    plain = kdengine.Batch(torch.rand(2, 3))
    marked = kdengine.Batch(torch.rand(2, 3), mask=torch.tensor([True, False]), weights=torch.tensor([0.5, 2.0]))
    whole = concatenate([plain, marked])
    assert (whole.mask.tolist(), whole.weights.tolist()) == ([True, True, True, False], [1.0, 1.0, 0.5, 2.0])


def test_mixed_items_weigh_what_their_parts_do():
    weights, partner, share = torch.tensor([1.0, 2.0, 0.0, 4.0], dtype=DOUBLE), torch.tensor([1, 3, 2, 0]), 0.3
    labels = torch.eye(4, dtype=DOUBLE)
    own, mixed = blend_weights(weights, partner, share)
    blended = mixed[:, None] * torch.lerp(labels[partner], labels, own.double())
    expected = share * weights[:, None] * labels + (1 - share) * weights[partner, None] * labels[partner]
    torch.testing.assert_close(blended, expected, rtol=1e-6, atol=0.0)


def test_mixing_leaves_items_without_weight_out():
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 3.0])
    alive = weights > 0
    for seed in range(5):
        batch = weighted(torch.eye(6), torch.arange(6) % CLASSES, weights)
        mixed = MixUp(CLASSES, alpha=1.0)(batch, torch.Generator().manual_seed(seed))
        assert torch.equal(mixed.weights > 0, alive)
        assert not mixed.inputs[alive][:, ~alive].any()


class Rebuilds(kdengine.BatchTransform):
    def __init__(self, make):
        self.make = make

    def __call__(self, batch, generator):
        return self.make(batch)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda batch: kdengine.Batch(batch.inputs, batch.labels), "without the weights"),
        (lambda batch: kdengine.Batch(batch.inputs[:2], batch.labels[:2]), "2 items in place of 12"),
        (lambda batch: batch.inputs, "returned a tensor"),
    ],
)
def test_a_transform_that_loses_weights_or_items_is_refused(make, said):
    inputs, labels, weights = data()
    with pytest.raises(kdengine.ConfigurationError, match=f"the batch transform Rebuilds .*{said}"):
        engine(mlp(dtype=DOUBLE), mlp(32, dtype=DOUBLE), batch_transforms=[Rebuilds(make)]).fit(
            [weighted(inputs, labels, weights)], epochs=1
        )


def test_a_batch_hook_that_loses_weights_is_refused():
    class Hook:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_batch(self, context):
            return kdengine.Batch(context.batch.inputs, context.batch.labels)

    with pytest.raises(kdengine.PluginError, match="without the weights that its items had"):
        engine(mlp(dtype=DOUBLE), mlp(32, dtype=DOUBLE), plugins=[Hook()]).fit([weighted(*data())], epochs=1)
