"""Whatever form inputs and outputs have, they are counted, moved, cast, cut and joined as what they are, or refused."""

from __future__ import annotations

import types
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import kdengine
from kdengine.api.structure import cast, count_items, join_items, map_tensors, move, slice_items, tensors
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import KD
from tests.engine.common import engine, flat

Pair = namedtuple("Pair", "image meta")


class Encoding(UserDict):
    """As the tokenizers of Hugging Face give it: more than its entries."""

    def __init__(self, data, note=""):
        super().__init__(data)
        self.note = note


@dataclass(frozen=True)
class Record:
    image: Any
    name: str = "record"


class Graph:
    """Moves itself, in place."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        self.x = self.x.to(device)
        return self


X = torch.arange(12.0).view(4, 3)
FORMS = {
    "tensor": X,
    "tuple": (X, X + 1),
    "list": [X, X + 1],
    "named tuple": Pair(X, {"a": X[:, 0]}),
    "dict": {"x": X, "nested": (X, [X])},
    "ordered": OrderedDict(x=X),
    "encoding": Encoding({"x": X}, "kept"),
    "dataclass": Record(X),
    "constants": {"x": X, "flag": True, "name": "text", "scale": torch.tensor(2.0), "none": None},
    "texts": {"x": X, "texts": ["a", "b", "c", "d"]},
    "images": ([X[n].expand(2, 3) for n in range(4)],),
}


def leaves(value) -> list[torch.Tensor]:
    return list(tensors(value))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_structure_keeps_its_type_and_everything_beside_its_tensors(form):
    for made in (map_tensors(torch.neg, form), move(form, torch.device("meta")), cast(form, torch.float64)):
        assert type(made) is type(form)
        assert len(leaves(made)) == len(leaves(form))
    assert all(leaf.device.type == "meta" for leaf in leaves(move(form, torch.device("meta"))))
    assert all(leaf.dtype == torch.float64 for leaf in leaves(cast(form, torch.float64)))
    assert all(leaf.device.type == "cpu" for leaf in leaves(form)), "what was given is left as it is"


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_cut_into_items_is_joined_to_what_it_was(form):
    parts = [slice_items(form, first, last, 4) for first, last in ((0, 1), (1, 4))]
    whole = join_items(parts, [1, 3])
    assert type(whole) is type(form)
    assert all(torch.equal(*pair) for pair in zip(leaves(whole), leaves(form), strict=True))


def test_what_stands_beside_tensors_goes_with_its_items():
    parts = [slice_items(FORMS["texts"], first, last, 4) for first, last in ((0, 1), (1, 4))]
    assert [part["texts"] for part in parts] == [["a"], ["b", "c", "d"]]
    assert join_items(parts, [1, 3])["texts"] == ["a", "b", "c", "d"]
    assert slice_items(FORMS["encoding"], 0, 1, 4).note == "kept"
    assert slice_items(FORMS["constants"], 0, 1, 4)["scale"] == 2.0


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"graph": Graph(X)}, r"inputs\['graph'\] is a Graph"),
        (
            {"x": X, "bias": torch.zeros(3, 3)},
            r"inputs\['bias'\] is a tensor \(3, 3\) float32, without a first",
        ),
        (Pair(X, torch.zeros(5)), r"inputs\[1\] is a tensor \(5,\)"),
        ((pack_sequence([X[0], X[1], X[2], X[3]]),), r"inputs\[0\] is a PackedSequence"),
        ({"x": X, "pair": [X, X, X, X]}, r"inputs\['pair'\] .* cannot be told whether"),
        ({"x": X, "set": {1, 2}}, r"inputs\['set'\] is a set"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_its_place(form, said):
    with pytest.raises(kdengine.ConfigurationError, match=said):
        slice_items(form, 0, 2, 4)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"x": X, "flag": True}, {"x": X, "flag": False}, r"inputs\['flag'\] differs between"),
        ({"x": X, "s": torch.tensor(1.0)}, {"x": X, "s": torch.tensor(2.0)}, r"inputs\['s'\] differs between"),
        ({"x": X}, {"x": X, "y": X}, "not of one form"),
        ({"x": X}, (X,), "not of one form"),
        ({"x": X, "y": X}, {"x": X, "y": None}, r"inputs\['y'\] is not of one form"),
    ],
)
def test_what_cannot_be_joined_is_refused_by_its_place(one, other, said):
    with pytest.raises(kdengine.ConfigurationError, match=said):
        join_items([one, other], [4, 4])


def test_objects_that_move_themselves_are_moved_and_left_as_they_were():
    graph = Graph(X)
    moved = move({"graph": graph, "texts": ["a"]}, torch.device("meta"))
    assert (moved["graph"].x.device.type, graph.x.device.type, moved["texts"]) == ("meta", "cpu", ["a"])
    packed = move(pack_sequence([X[0], X[1]]), torch.device("cpu"))
    assert count_items(packed) == 2
    frozen = types.MappingProxyType({"x": X})
    assert move(frozen, torch.device("meta"))["x"].device.type == "meta"


@pytest.mark.parametrize(
    "ragged", [[X, X[:3]], {"ids": [torch.zeros(5), torch.zeros(7)]}, ([torch.zeros(3, 8), torch.zeros(4, 8)],)]
)
def test_a_list_of_tensors_that_were_not_stacked_is_not_counted(ragged):
    with pytest.raises(kdengine.ConfigurationError, match=r"a list of 2 tensors whose first dimensions differ.*size="):
        kdengine.Batch(ragged)
    assert kdengine.Batch(ragged, size=2).size == 2


class Two(nn.Module):
    def __init__(self, out=lambda y: y):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.out = nn.Linear(3, 2), nn.Linear(2, 2), out

    def forward(self, image, meta):
        return self.out(self.a(image) + self.b(meta))


class Same(kdengine.BatchTransform):
    def __call__(self, batch, generator):
        return batch.replace(inputs=map_tensors(torch.neg, batch.inputs))


Out = namedtuple("Out", "logits aux")


@pytest.mark.parametrize(
    "form", [tuple, list, Pair._make, lambda pair: Encoding(dict(zip(("image", "meta"), pair, strict=True)))]
)
def test_inputs_of_several_parts_train_under_accumulation_transforms_and_another_precision(form):
    items = [((torch.randn(4, 3), torch.randn(4, 2)), torch.arange(4) % 2) for _ in range(2)]
    students = []
    for make in (form, lambda pair: tuple(-part for part in pair)):
        student, teacher = Two(), LiveTeacher(Two(lambda y: Out(y, (y, "text"))), dtype=torch.float64)
        changed = {"batch_transforms": [Same()]} if make is form else {}
        trained = engine(student, teacher, losses={"kd": KD()}, weights={}, accumulate=2, **changed)
        assert trained.fit([(make(pair), labels) for pair, labels in items], epochs=2).steps == 2
        students.append(flat(student))
    torch.testing.assert_close(*students, rtol=1e-6, atol=0.0)


def test_a_batch_that_a_transform_cannot_get_is_refused_and_needs_none_without():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 2)

        def forward(self, x, graph):
            return self.net(x + graph.x)

    batches = [({"x": X, "graph": Graph(X), "labels": torch.arange(4) % 2}) for _ in range(2)]
    options = {"losses": {"kd": KD()}, "weights": {}, "accumulate": 2}
    assert engine(Reads(), Reads(), **options).fit(batches, epochs=1).steps == 1
    with pytest.raises(kdengine.ConfigurationError, match=r"inputs\['graph'\] is a Graph.*Leave batch_transforms out"):
        engine(Reads(), Reads(), **options, batch_transforms=[Same()]).fit(batches, epochs=1)
