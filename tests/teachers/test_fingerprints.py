"""The hash of inputs: every byte, every part, every place counts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kdengine.teachers.fingerprints import configuration_digest, input_keys

X = torch.arange(24.0).view(2, 3, 4)


def changed(tensor, at, to):
    other = tensor.clone()
    other[at] = to
    return other


@pytest.mark.parametrize(
    ("inputs", "other"),
    [
        (X, changed(X, (0, 2, 3), 11.000001)),
        (X, changed(X, (0, 0, 0), -0.0)),
        (X, X.flatten(1)),
        (X, X.double()),
        (X, X.view(torch.int32)),
        (X[..., :3], changed(X[..., :3], (0, 2, 2), 0.0)),
        ({"a": X, "b": -X}, {"a": -X, "b": X}),
        ({"a": X}, {"b": X}),
        ((X, -X), (-X, X)),
        ({"a": X, "causal": True}, {"a": X, "causal": False}),
        ({"a": X, "scale": torch.tensor(1.0)}, {"a": X, "scale": torch.tensor(2.0)}),
    ],
)
def test_what_differs_has_another_hash(inputs, other):
    assert input_keys(inputs, 2)[0] != input_keys(other, 2)[0]


def test_an_item_has_its_hash_whatever_stands_beside_it():
    keys = input_keys(X, 2)
    assert input_keys(X.flip(0), 2).tolist() == keys[::-1].tolist()
    assert input_keys(X[1:].clone(), 1).tolist() == keys[1:].tolist()
    assert input_keys(X.transpose(1, 2).contiguous().transpose(1, 2), 2).tolist() == keys.tolist()


def test_bits_that_cancel_in_a_sum_of_words_do_not_cancel_in_the_hash():
    signs = X.clone()
    signs[0, 0, 1] *= -1
    signs[0, 0, 3] *= -1
    assert input_keys(signs, 2)[0] != input_keys(X, 2)[0]


def test_hashes_of_many_inputs_differ():
    many = torch.randint(0, 2, (4096, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).unique(dim=0)
    assert len(set(input_keys(many, len(many)).tolist())) == len(many)


def test_a_configuration_has_no_addresses_in_it():
    class Held(torch.nn.Module):
        def extra_repr(self):
            return repr(lambda: None)

    assert configuration_digest(Held()) == configuration_digest(Held())


class Graph:
    """Prints its shapes alone."""

    def __init__(self, x):
        self.x, self.owner = x, self

    def __repr__(self):
        return f"Graph(x={list(self.x.shape)})"


@dataclass
class Record:
    x: object


@pytest.mark.parametrize("form", [Graph, Record, lambda x: [x.numpy()], lambda x: {"x": x.double().numpy()}])
def test_what_an_object_holds_tells_it_from_another(form):
    long = torch.arange(4000.0).view(2, 2000)  # too long to be printed
    other = long.clone()
    other[0, 1000] += 1
    keys = [input_keys(form(rows), 2).tolist() for rows in (long, long.clone(), other)]
    assert keys[0] == keys[1] != keys[2]
