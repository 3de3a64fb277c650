"""Items that make no batch are told apart: which two, where, and what each is."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import kdengine
from kdengine.cli.verdict import verdict


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def read(*items, **options):
    return list(kdengine.loader(Items(*items), len(items), shuffle=False, **options))


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([(torch.ones(6), 0), (torch.ones(6), 1), (torch.ones(7), 0)], r"\[0\] of item 2 .*\(7,\).* item 0 .*\(6,\)"),
        ([torch.ones(3, 4, 4), torch.ones(1, 4, 4)], r"item 1 .*\(1, 4, 4\).*item 0 .*\(3, 4, 4\)"),
        ([{"x": torch.ones(2)}, {"y": torch.ones(2)}], r"\['x'\] of item 1 is absent"),
        ([(torch.ones(2), 1), (torch.ones(2), None)], r"\[1\] of item 1 is None, .* is a int"),
        ([(torch.ones(2), 1), (torch.ones(2),)], r"\[1\] of item 1 is absent"),
        ([(np.ones((2, 2)), 1), (np.ones((3, 2)), 1)], r"ndarray of shape \(3, 2\)"),
    ],
    ids=["input", "channels", "keys", "label missing", "part missing", "arrays"],
)
def test_the_items_that_differ_are_told(items, said):
    with pytest.raises(kdengine.ConfigurationError, match=said) as caught:
        read(*items)
    assert "resize" in str(caught.value)


def test_a_worker_says_the_same_and_the_command_line_without_its_traceback():
    with pytest.raises(kdengine.ConfigurationError) as caught:
        read((torch.ones(6), 0), (torch.ones(7), 0), workers=1)
    code, text = verdict(caught.value)
    assert code == 2
    assert re.fullmatch(r"error: the items of a batch do not fit .* a collate that pads", text.splitlines()[0])


def test_what_a_collate_of_the_users_raises_passes_as_it_is():
    def collate(items):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        read((torch.ones(6), 0), (torch.ones(7), 0), collate=collate)


def test_items_of_several_shapes_are_no_error_where_a_collate_pads():
    def pad(items):
        return torch.nn.utils.rnn.pad_sequence([inputs for inputs, _ in items], batch_first=True)

    (batch,) = read((torch.ones(6), 0), (torch.ones(7), 0), collate=pad)
    assert batch.shape == (2, 7)
