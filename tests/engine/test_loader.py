"""The order of data is a pure function of (seed, epoch); a sample's randomness of (seed, epoch, index)."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import kdengine


class Noisy:
    """A data set whose transform draws from every generator that transforms use."""

    def __init__(self, items: int = 20) -> None:
        self.items = items

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item(), random.random(), np.random.rand()]), index % 3


def epoch(loader, number: int, start: int = 0) -> torch.Tensor:
    return torch.cat([item.data[0] for item in loader.batches(number, start)])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    alone, helped = (kdengine.loader(Noisy(), 6, seed=5, workers=count) for count in (0, workers))
    for number in (0, 1):
        assert torch.equal(epoch(alone, number), epoch(helped, number))


def test_epochs_and_seeds_differ_in_order_and_in_randomness():
    loader = kdengine.loader(Noisy(), 6, seed=5)
    first, second, other = epoch(loader, 0), epoch(loader, 1), epoch(kdengine.loader(Noisy(), 6, seed=6), 0)
    for rows in (second, other):
        assert not torch.equal(first[:, 0], rows[:, 0])
        assert not torch.equal(first[first[:, 0].argsort(), 1], rows[rows[:, 0].argsort(), 1])


def test_an_epoch_can_be_entered_at_any_batch():
    loader = kdengine.loader(Noisy(), 6, seed=5)
    assert torch.equal(epoch(loader, 3, start=2), epoch(loader, 3)[12:])


def test_neither_iterators_nor_transforms_move_the_callers_random_state():
    loader = kdengine.loader(Noisy(), 6)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = (torch.rand(()).item(), random.random(), np.random.rand())
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    list(loader)
    assert (torch.rand(()).item(), random.random(), np.random.rand()) == expected


def test_plain_iteration_gives_tuples_with_the_index_and_moves_on_by_epochs():
    loader = kdengine.loader(Noisy(), 6)
    first = [index for _, _, index in loader]
    second = [index for _, _, index in loader]
    assert sorted(torch.cat(first).tolist()) == list(range(20))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    assert len(loader) == 4


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        ([], {}, "is empty"),
        (iter([1]), {}, "map-style"),
        ([1, 2], {"batch_size": 0}, "at least 1"),
        ([1, 2], {"batch_size": 3, "drop_last": True}, "leaves no batch"),
    ],
)
def test_what_would_give_no_batch_is_refused(dataset, options, said):
    with pytest.raises(kdengine.ConfigurationError, match=said):
        kdengine.loader(dataset, **{"batch_size": 2, **options})


@pytest.mark.parametrize("workers", [0, 1])
def test_two_iterations_over_one_loader_do_not_meet(workers):
    loader = kdengine.loader(Noisy(), 6, seed=5, workers=workers)
    expected = [epoch(loader, number) for number in (0, 1)]
    first, second = loader.batches(0), loader.batches(1)
    found = [[], []]
    for one, other in zip(first, second, strict=True):
        found[0].append(one.data[0])
        found[1].append(other.data[0])
    for rows, whole in zip(found, expected, strict=True):
        assert torch.equal(torch.cat(rows), whole)
    assert torch.equal(epoch(loader, 0), expected[0]), "the workers serve again"


class OwnGenerator:
    """Draws from a generator of its own, seeded for each item or not."""

    def __init__(self, generator, seeded: bool = False, p: float = 0.0) -> None:
        self.holder, self.seeded, self.p = {"transforms": [generator]}, seeded, p

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        (generator,) = self.holder["transforms"]
        if self.seeded:
            generator.seed(torch.initial_seed())
        drawn = generator.random()
        return torch.tensor([float(index), drawn if drawn > self.p else 0.0])


class Torch:
    def __init__(self):
        self.own = torch.Generator()

    def random(self):
        return torch.rand((), generator=self.own).item()


@pytest.mark.parametrize("make", [np.random.default_rng, random.Random, Torch, np.random.RandomState])
@pytest.mark.parametrize("p", [0.0, 1.0], ids=["seen in the item", "hidden by luck"])
def test_a_data_set_that_draws_from_a_generator_of_its_own_is_named_once(make, p):
    loader = kdengine.loader(OwnGenerator(make() if make is Torch else make(3), p=p), 4)
    with pytest.warns(UserWarning, match="OwnGenerator under one seed differ.*set_random_seed") as told:
        list(loader), list(loader)
    assert len(told) == 1


def test_looking_does_not_move_the_data_sets_generator():
    dataset = OwnGenerator(np.random.default_rng(3))
    with pytest.warns(UserWarning, match="under one seed differ"):
        rows = torch.cat(list(kdengine.loader(dataset, 4, shuffle=False)))
    expected = np.random.default_rng(3)
    assert rows[:, 1].tolist() == pytest.approx([expected.random() for _ in range(8)], rel=1e-6)


def test_a_worker_tells_of_the_data_set_too():
    with pytest.warns(UserWarning, match="OwnGenerator under one seed differ"):
        list(kdengine.loader(OwnGenerator(np.random.default_rng(3)), 4, workers=1))


GENERATOR = random.Random(3)


def flipped(value):
    return -value if GENERATOR.random() > 2.0 else value  # never, but it draws


class Global(Noisy):
    """Draws in a function that the class holds, from a generator of the module."""

    change = staticmethod(flipped)

    def __getitem__(self, index):
        return self.change(super().__getitem__(index)[0])


class Closed(Noisy):
    """Draws in a closure."""

    def __init__(self):
        super().__init__()
        generator = np.random.default_rng(0)
        self.change = lambda value: value + 0.0 * generator.random()

    def __getitem__(self, index):
        return self.change(super().__getitem__(index)[0])


@pytest.mark.parametrize("make", [Global, Closed, lambda: torch.utils.data.Subset(Closed(), range(5))])
def test_a_generator_is_found_where_transforms_keep_it(make):
    with pytest.warns(UserWarning, match="(Global|Closed) under one seed differ"):
        list(kdengine.loader(make(), 5))


class Unequal:
    """Compares by identity."""

    def __init__(self, value):
        self.value = value


class Objects(Noisy):
    def __getitem__(self, index):
        return {"x": super().__getitem__(index)[0], "object": Unequal(torch.rand(2)), "nan": float("nan"), "n": np.nan}


class Proxy:
    """Has nothing behind it, and says so whatever is asked."""

    def __getattribute__(self, name):
        raise RuntimeError("working outside of the context")


@pytest.mark.filterwarnings("error")
def test_what_can_be_seeded_is_not_named():
    proxied = Noisy()
    proxied.proxy = [Proxy()]
    list(kdengine.loader(proxied, 6))
    list(kdengine.loader(Noisy(), 6))
    list(kdengine.loader(OwnGenerator(random.Random(), seeded=True), 4))
    list(kdengine.loader(Objects(), 6, collate=lambda samples: samples))
