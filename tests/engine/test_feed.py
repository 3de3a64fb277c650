"""A loader of the user's own: its order is kept, and what it cannot promise is not promised."""

from __future__ import annotations

import pytest
import torch

import kdengine
from kdengine.engine import random
from kdengine.engine.batching import to_batch
from kdengine.engine.feed import Feed
from tests.engine.common import engine, items


def shuffling(workers: int = 0) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(items(20), 3, shuffle=True, num_workers=workers)


def test_windows_hold_accumulated_batches_and_the_last_may_be_shorter():
    feed = Feed(shuffling(), 3, to_batch)
    assert feed.steps_per_epoch == 3
    assert [len(window) for window in feed.windows(0)] == [3, 3, 1]


def test_a_shuffled_loader_is_replayed_to_the_batch_where_a_checkpoint_stood():
    feed = Feed(shuffling(), 1, to_batch)
    torch.manual_seed(0)
    whole = [window[0].inputs for window in feed.windows(0)]
    state = feed.epoch_state
    torch.manual_seed(99)
    resumed = Feed(shuffling(), 1, to_batch)
    resumed.epoch_state = state
    before = torch.get_rng_state()
    rest = [window[0].inputs for window in resumed.windows(0, start=4)]
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert torch.equal(before, torch.get_rng_state()), "the student's random state is where the checkpoint left it"


def test_an_example_is_read_without_moving_the_random_state():
    before = random.capture()["torch"]
    Feed(shuffling(), 1, to_batch).example()
    assert torch.equal(before, random.capture()["torch"])


def test_a_loader_that_yields_nothing_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="its length is 0"):
        engine().fit([], epochs=1)

    class Liar:
        def __len__(self):
            return 3

        def __iter__(self):
            return iter(())

    with pytest.raises(kdengine.ConfigurationError, match="yielded no batch in epoch 1"):
        engine().fit(Liar(), epochs=1)


def test_a_loader_without_length_needs_the_number_of_steps():
    def stream():
        while True:
            yield items()[:4]

    class Endless:
        def __iter__(self):
            return stream()

    with pytest.raises(kdengine.ConfigurationError, match="steps_per_epoch"):
        engine().fit(Endless(), epochs=1)
    assert engine().fit(Endless(), epochs=2, steps_per_epoch=3).steps == 6
