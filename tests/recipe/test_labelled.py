from __future__ import annotations

import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.recipe.data import make_data
from kdengine.recipe.labelled import UNLABELLED, Labelled, choose


def test_the_share_is_taken_of_every_class():
    labels = torch.tensor([0] * 100 + [1] * 30 + [2] * 3)
    kept = choose(labels, 0.1, seed=0)
    assert [int(kept[labels == label].sum()) for label in range(3)] == [10, 3, 1]


def test_which_labels_stay_is_a_function_of_the_seed_alone():
    labels = torch.arange(10).repeat(50)
    first = choose(labels, 0.1, seed=3)
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(first, choose(labels, 0.1, seed=3))
    assert not torch.equal(first, choose(labels, 0.1, seed=4))


def test_choosing_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    choose(torch.arange(10), 0.5, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_outside_of_0_to_1_is_refused(share):
    with pytest.raises(ConfigurationError, match="share between 0 and 1"):
        choose(torch.arange(10), share, seed=0)


def test_inputs_stay_and_hidden_labels_are_ignored_ones(plan_of):
    data = make_data(plan_of())
    half = data.training_set(0.5, seed=0)
    assert isinstance(half, Labelled)
    assert len(half) == len(data.train)
    assert half.indexed_tensors is not None
    assert torch.equal(half.indexed_tensors[0], data.train.tensors[0])
    for position in range(20):
        image, label = half[position]
        assert torch.equal(image, data.train[position][0])
        assert label in (UNLABELLED, data.train[position][1])
        assert label == half.indexed_tensors[1][position] == half.targets[position]


def test_everything_labelled_is_the_data_set_itself(plan_of):
    data = make_data(plan_of())
    assert data.training_set(1.0, seed=0) is data.train
