"""What a loader yields is read as what it is: a data set's own items, a batch, and an index only where it is one."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, WeightedRandomSampler

import kdengine
from kdengine.data.dataset import InMemory
from kdengine.engine.batching import Reader, to_batch
from kdengine.losses import CE
from tests.engine.common import engine, items

INPUTS, LABELS = items(24).tensors
WEIGHTS = torch.rand(24, generator=torch.Generator().manual_seed(1))


def first_loss(loader, **options) -> float:
    return engine(losses=[CE()], weights={}, **options).fit(loader, epochs=1).history[0]["ce"]


@pytest.mark.parametrize(
    "third",
    [
        WEIGHTS,
        WEIGHTS > 0.5,
        torch.arange(24, dtype=torch.int32),
        torch.arange(48).view(24, 2),
        torch.arange(24) - 1,
        torch.arange(24) // 2,
        [f"{n}.png" for n in range(24)],
    ],
    ids=["weights", "flags", "int32", "pairs", "negative", "coarse labels", "names"],
)
@pytest.mark.parametrize("make", [kdengine.loader, DataLoader])
def test_a_third_part_that_is_no_index_is_refused_before_a_step(third, make):
    dataset = list(zip(INPUTS, LABELS, third, strict=True))
    trained = engine()
    with pytest.raises(kdengine.ConfigurationError, match=r"third part.*weights=item\[2\]"):
        trained.fit(make(dataset, 24), epochs=1)


def test_a_third_part_that_is_an_index_is_one():
    dataset = TensorDataset(INPUTS, LABELS, torch.arange(24).flip(0))
    for loader in (kdengine.loader(dataset, 8), DataLoader(dataset, 8), DataLoader(Subset(dataset, range(3, 9)), 8)):
        assert engine().fit(loader, epochs=1).steps
    again = WeightedRandomSampler(torch.ones(24), 24, replacement=True)
    assert engine().fit(DataLoader(dataset, 24, sampler=again), epochs=1).steps == 1
    beyond = TensorDataset(INPUTS, LABELS, torch.arange(24) + 1)
    with pytest.raises(kdengine.ConfigurationError, match="goes up to 24, and the data set has 24 items"):
        engine().fit(DataLoader(beyond, 24), epochs=1)
    meant = engine(batch=lambda item: kdengine.Batch(item[0], item[1], index=item[2]))
    assert meant.fit(DataLoader(beyond, 24), epochs=1).steps == 1


@pytest.mark.parametrize("make", [kdengine.loader, DataLoader])
def test_sample_weights_come_in_by_a_function(make):
    kept = WEIGHTS > 0.5
    dataset = TensorDataset(INPUTS, LABELS, kept.float())

    def read(item):
        assert len(item) == 3, "just what the data set has"
        return kdengine.Batch(item[0], item[1], weights=item[2])

    assert first_loss(make(dataset, 24), batch=read) == pytest.approx(
        first_loss([(INPUTS[kept], LABELS[kept])]), rel=1e-6
    )


def test_a_function_of_the_users_gets_the_users_item_and_the_engine_keeps_the_index():
    seen = []
    named = namedtuple("Named", "x y")
    dataset = [named(x, y) for x, y in zip(INPUTS, LABELS, strict=True)]

    def read(item):
        seen.append(type(item))
        return kdengine.Batch(item.x, item.y)

    loader = kdengine.loader(dataset, 8)
    (batch,) = (Reader(read)(item) for item in [next(loader.batches(0))])
    assert torch.equal(batch.inputs, INPUTS[batch.index])
    assert engine(batch=read).objective(next(iter(loader))).requires_grad
    assert set(seen) == {named}
    with pytest.raises(kdengine.ConfigurationError, match=r"fn returned a tuple of 2.*expected a kdengine.Batch"):
        engine(batch=tuple).fit(loader, epochs=1)


def test_a_batch_that_collate_made_keeps_its_index_wherever_it_is_read():
    def collate(samples):
        inputs, labels = torch.utils.data.default_collate(samples)
        return kdengine.Batch(-inputs, labels)

    loader = kdengine.loader(items(24), 8, collate=collate)
    for item in (next(loader.batches(0)), next(iter(loader)), loader.example()):
        batch = to_batch(item)
        assert torch.equal(batch.inputs, -INPUTS[batch.index])


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_in_a_loop_of_ones_own_the_index_comes_last_and_an_engine_knows_it(parts):
    dataset = TensorDataset(*(INPUTS, LABELS, torch.arange(24))[:parts])
    item = next(iter(kdengine.loader(dataset, 8)))
    assert len(item) == parts + 1
    assert torch.equal(item[0], INPUTS[item[-1]])
    batch = to_batch(item)
    assert torch.equal(batch.index, item[-1])
    assert (batch.labels is None) == (parts == 1)


def test_an_item_that_a_trainer_has_moved_keeps_its_index():
    item = next(iter(kdengine.loader(TensorDataset(INPUTS), 8)))
    moved = type(item)(part.clone() for part in item)  # as Lightning and Accelerate move a tuple
    batch = to_batch(moved)
    assert (batch.labels, batch.index.tolist()) == (None, item[-1].tolist())


def test_a_loader_can_be_copied_and_sent():
    loader = kdengine.loader(items(24), 8)
    next(iter(loader))
    again = pickle.loads(pickle.dumps(copy.deepcopy(loader)))
    assert torch.equal(next(again.batches(0)).index, next(loader.batches(0)).index)


class Halved(TensorDataset):
    def __getitem__(self, index):
        inputs, labels = super().__getitem__(index)
        return inputs / 2, labels


class Holds(torch.utils.data.Dataset):
    """Has tensors, and makes its items of them in its own way."""

    random = False

    def __init__(self):
        self.tensors = (INPUTS, LABELS)

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return self.tensors[0][index] / 2, self.tensors[1][index]


@pytest.mark.parametrize("dataset", [Halved(INPUTS, LABELS), Holds(), ConcatDataset([Holds()])])
def test_a_data_sets_own_items_are_never_bypassed(dataset):
    inputs, labels, index = next(iter(kdengine.loader(dataset, 8)))
    assert torch.equal(inputs, INPUTS[index] / 2)
    assert torch.equal(labels, LABELS[index])


def test_a_builtin_data_sets_subclass_and_a_transform_set_later_are_not_bypassed():
    class Doubled(InMemory):
        def load(self, position):
            return super().load(position) * 2

    made = Doubled(INPUTS, LABELS, list("abcde"))
    inputs, _, index = next(iter(kdengine.loader(made, 8)))
    assert torch.equal(inputs, INPUTS[index] * 2)
    plain = InMemory(INPUTS, LABELS, list("abcde"))
    loader = kdengine.loader(plain, 8)
    plain.transform = torch.neg
    inputs, _, index = next(iter(loader))
    assert torch.equal(inputs, -INPUTS[index])


def test_a_collate_function_is_called_for_data_in_memory_too():
    def collate(samples):
        return {"inputs": torch.stack([x for x, _ in samples]), "labels": torch.stack([y for _, y in samples])}

    assert set(next(iter(kdengine.loader(items(24), 8, collate=collate)))) == {"inputs", "labels"}
