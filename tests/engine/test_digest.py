"""The digest of a step's items tells other items, labels and inputs, and nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdengine import Batch
from kdengine.engine.digest import MODULUS, digest


def batch(size=12, change=None):
    generator = torch.Generator().manual_seed(0)
    parts = {
        "inputs": torch.randn(size, 3, 8, 8, generator=generator),
        "labels": torch.randint(0, 5, (size,), generator=generator),
        "index": torch.randperm(1000, generator=generator)[:size],
    }
    if change is not None:
        parts[change][size // 2] += 1
    return parts


def total(parts, cuts):
    whole = Batch(**parts)
    edges = [0, *sorted(cuts), whole.size]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]
    return sum(digest(Batch(**{name: part[piece] for name, part in parts.items()})) for piece in pieces) % MODULUS


@given(st.lists(st.integers(0, 12), max_size=5), st.permutations(range(12)))
def test_it_is_the_same_for_any_split_and_order(cuts, order):
    parts = batch()
    shuffled = {name: part[list(order)] for name, part in parts.items()}
    assert total(shuffled, cuts) == digest(Batch(**parts))


@pytest.mark.parametrize("change", ["inputs", "labels", "index"])
def test_it_tells_one_other_item(change):
    assert digest(Batch(**batch())) != digest(Batch(**batch(change=change)))


def test_it_tells_another_crop():
    images = batch()["inputs"]
    assert digest(Batch(images)) != digest(Batch(images.roll(1, dims=-1)))


def test_padding_counts_nowhere():
    parts = batch()
    padded = {name: torch.cat([part, part[:3]]) for name, part in parts.items()}
    mask = torch.tensor([True] * 12 + [False] * 3)
    assert digest(Batch(**padded, mask=mask)) == digest(Batch(**parts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64])
def test_inputs_of_any_type_and_form(dtype):
    rows = torch.arange(4).to(dtype)
    assert digest(Batch({"a": rows, "b": rows[:, None]})) != digest(Batch({"a": rows, "b": rows.roll(1)[:, None]}))
    assert digest(Batch({"a": rows, "name": "text"}, size=4)) == digest(Batch({"a": rows}))


def test_inputs_in_several_parts_are_all_looked_at():
    rows = torch.arange(4.0)[:, None]
    assert digest(Batch((rows, rows + 1))) != digest(Batch((rows, rows + 2)))
    assert digest(Batch((rows, rows.to_sparse()))) == digest(Batch((rows,)))
