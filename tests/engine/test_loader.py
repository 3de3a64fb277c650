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
