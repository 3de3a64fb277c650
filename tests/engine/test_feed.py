"""A loader of the user's own: its order is kept, and what it cannot promise is not promised."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

import kdengine
from kdengine.engine import random
from kdengine.engine.batching import to_batch
from kdengine.engine.feed import Feed
from kdengine.losses import CE, KD, Hint
from tests.engine.common import engine, flat, items, mlp


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
    with pytest.raises(kdengine.ConfigurationError, match="its length is 0"):
        engine(metrics={"top1": "top1"}).evaluate([])

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


def batches(count: int = 4) -> list:
    return list(zip(*(part.split(4) for part in items(4 * count).tensors), strict=True))


class Restarts:
    """An iterator of the user's own that begins anew when it is asked to."""

    def __iter__(self):
        self.left = iter(batches())
        return self

    def __next__(self):
        return next(self.left)


class Goes(Restarts):
    """One that never begins anew."""

    def __init__(self):
        super().__iter__()

    def __iter__(self):
        return self


class Rewinds:
    """An iterator that begins anew by what it holds: no attribute changes."""

    def __init__(self, wrap=tuple):
        self.place, self.wrap = [0], wrap

    def __iter__(self):
        self.place[0] = 0
        return self

    def __next__(self):
        self.place[0] += 1
        if self.place[0] > 4:
            raise StopIteration
        return self.wrap(batches()[self.place[0] - 1])


class Shares:
    """Gives the iterator that it keeps."""

    def __init__(self):
        self.kept = iter(batches())

    def __iter__(self):
        return self.kept


def generator():
    yield from batches()


KINDS = [
    Restarts,
    Goes,
    Shares,
    Rewinds,
    generator,
    lambda: Rewinds(lambda item: kdengine.Batch(*item)),
    lambda: map(tuple, batches()),
    lambda: (kdengine.Batch(*item) for item in batches()),
    lambda: batches(),
]


@pytest.mark.parametrize("make", KINDS)
def test_no_kind_of_loader_loses_a_batch_to_a_look_ahead(make):
    feed = Feed(make(), 1, to_batch, 4)
    assert torch.equal(feed.example().inputs, batches()[0][0])
    read = torch.cat([window[0].inputs for window in feed.windows(0)])
    assert torch.equal(read, items(16).tensors[0])


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("losses", [{"ce": CE()}, {"hint": Hint("0", "0")}], ids=["nothing to set up", "set up"])
def test_an_evaluation_counts_every_item_of_any_kind_of_loader(make, losses):
    seen = []

    def count(logits, labels):
        seen.append(labels)
        return torch.ones(len(labels))

    measured = engine(losses=losses, weights={}, metrics={"n": count})
    measured.evaluate(make())
    assert torch.equal(torch.cat(seen), items(16).tensors[1])


def test_an_iterator_is_not_taken_for_data_of_several_epochs():
    with pytest.raises(kdengine.ConfigurationError, match="no batch in epoch 2; it is an iterator, which is read once"):
        engine().fit(generator(), epochs=2, steps_per_epoch=4)
    with pytest.raises(kdengine.ConfigurationError, match=r"evaluation loader is a generator.*evaluates 2 times"):
        engine(metrics={"top1": "top1"}).fit(batches(), generator(), epochs=2)
    assert engine(metrics={"top1": "top1"}, evaluate_every=2).fit(batches(), generator(), epochs=2).metrics


@pytest.mark.parametrize("steps", [0, -1, 2.5, "3"])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(kdengine.ConfigurationError, match=f"steps_per_epoch must be .* at least 1, got {steps!r}"):
        engine().fit(batches(), epochs=1, steps_per_epoch=steps)


@pytest.mark.parametrize("make", [batches, lambda: DataLoader(items(16), 4), lambda: kdengine.loader(items(16), 4)])
def test_more_steps_than_a_loader_has_are_refused_before_training(make):
    student = mlp()
    before = flat(student).clone()
    with pytest.raises(kdengine.ConfigurationError, match=r"steps_per_epoch is 3, .* 4 batches .* 2 steps"):
        engine(student, accumulate=2).fit(make(), epochs=1, steps_per_epoch=3)
    assert torch.equal(flat(student), before)
    assert engine(accumulate=2).fit(make(), epochs=2, steps_per_epoch=1).steps == 2


def test_a_loader_that_ends_before_the_steps_that_were_asked_for_is_an_error():
    class Short:
        def __iter__(self):
            return generator()

    with pytest.raises(kdengine.ConfigurationError, match=r"ended after 4 of 60 steps in epoch 1.*steps_per_epoch=4"):
        engine().fit(Short(), epochs=1, steps_per_epoch=60)


def test_a_loader_that_gives_less_than_its_length_is_named_once():
    class Long:
        def __len__(self):
            return 10

        def __iter__(self):
            return generator()

    with pytest.warns(UserWarning, match=r"Long gives fewer .* \(in epoch 1 they made 4 of 10 steps\)") as told:
        assert engine().fit(Long(), epochs=2).steps == 8
    assert len(told) == 1


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ({"x": torch.zeros(4, 12)}, r"expected a loader, .* got a dict with keys \['x'\]: one batch goes into a list"),
        (kdengine.Batch(torch.zeros(4, 12)), "got a Batch .*one batch goes into a list"),
        (None, "expected a loader, .* got None"),
        (items(), r"got a tensor \(\) int64: .* items rather than batches; .*kdengine.loader\(dataset"),
        (DataLoader(items(), batch_size=None), "items rather than batches"),
        ([(torch.zeros(12), 3)], "got a int 3: .* items rather than batches"),
        (items().tensors[0], r"the student's logits are a tensor \(5,\) float32, .*items .* rather than batches"),
        ([tuple(part.numpy() for part in items().tensors)], r"got a ndarray \(32,\) int64: make tensors of arrays"),
    ],
)
def test_what_is_no_loader_of_batches_is_told_so(loader, said):
    with pytest.raises(kdengine.ConfigurationError, match=said):
        engine(losses={"kd": KD()}, weights={}).fit(loader, epochs=1, steps_per_epoch=1)
    with pytest.raises(kdengine.ConfigurationError, match=said):
        engine(metrics={"top1": "top1"}).evaluate(loader)


def test_a_batch_of_the_users_own_is_left_as_it_is():
    own = kdengine.Batch(*batches()[0])
    engine().fit([own], epochs=2)
    assert (own.epoch, own._student) == (None, None)


def test_a_step_of_no_micro_batches_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="at least one; got none"):
        engine().train_step([])


def test_a_generator_trains_on_all_of_its_batches_even_where_a_loss_is_set_up_on_the_first():
    students = []
    for loader in (generator(), batches()):
        student = mlp()
        engine(student, losses={"hint": Hint("0", "0")}, weights={}, seed=0).fit(loader, epochs=1, steps_per_epoch=4)
        students.append(flat(student))
    assert torch.equal(*students)


@pytest.mark.parametrize("make", [Restarts, Rewinds, lambda: batches()])
def test_a_resumed_epoch_goes_on_where_it_was_whatever_iterates(make):
    feed = Feed(make(), 1, to_batch, 4)
    feed.epoch_state = random.capture()
    rest = torch.cat([window[0].inputs for window in feed.windows(0, start=2)])
    assert torch.equal(rest, items(16).tensors[0][8:])
