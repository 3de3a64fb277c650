import pytest
import torch

from kdengine.losses.relations.negatives import count_negatives, scramble

WORD = 0xFFFFFFFF


def drawn(index, items=50, draws=64, key=3, step=0):
    key, step = torch.tensor(key), torch.tensor(step)
    return count_negatives(key, step, torch.as_tensor(index), items, draws, torch.float64)


def mixed(word):
    """The same hash with whole numbers of any size."""
    word ^= word >> 16
    word = word * 0x21F0AAAD & WORD
    word ^= word >> 15
    word = word * 0xD35A2D97 & WORD
    return word ^ word >> 15


def test_the_hash_does_not_overflow():
    words = [0, 1, 2, 12345, 2**31 - 1, 2**31, WORD]
    assert scramble(torch.tensor(words)).tolist() == [mixed(word) for word in words]


def test_each_row_counts_its_draws_one_by_one():
    key, step, items, draws = 2**31 - 1, 7, 50, 64
    for index, row in zip((0, 17, 49), drawn([0, 17, 49], items, draws, key, step).tolist(), strict=True):
        expected = [0] * items
        of_item = mixed(mixed(key ^ mixed(step)) ^ index)
        for draw in range(draws):
            other = mixed(of_item ^ mixed(draw)) % (items - 1)
            expected[other + (other >= index)] += 1
        assert row == expected


def test_an_item_is_never_its_own_negative_and_has_as_many_as_asked_for():
    counts = drawn(range(50), draws=1000)
    assert not counts.diagonal().any()
    assert (counts.sum(dim=1) == 1000).all()


def test_draws_do_not_depend_on_the_batch_but_on_item_step_and_key():
    counts = drawn([3, 30])
    assert torch.equal(drawn([8, 30, 3])[[2, 1]], counts)
    assert not torch.equal(counts[0], counts[1])
    assert not torch.equal(drawn([3, 30], step=1), counts)
    assert not torch.equal(drawn([3, 30], key=4), counts)


@pytest.mark.parametrize(("steps", "draws"), [(1, 40_000), (200, 200), (2000, 20)])
def test_every_other_item_is_drawn_alike(steps, draws):
    items = 21
    total = sum(drawn(range(items), items, draws, step=step) for step in range(steps))
    expected = steps * draws / (items - 1)
    deviations = ((total - expected).square() / expected)[~torch.eye(items, dtype=torch.bool)].view(items, -1).sum(1)
    free = items - 2
    assert abs(float(deviations.mean()) - free) < 4 * (2 * free / items) ** 0.5


def test_two_items_have_one_negative_each():
    assert drawn([0, 1], items=2, draws=5).tolist() == [[0, 5], [5, 0]]
