import enum
import json
import math
import random
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from kdengine.engine.codec import MAX_DEPTH, MalformedState, UnsupportedState, decode, encode


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


Point = namedtuple("Point", "x y")


def round_trip(tree):
    obj, tensors = encode(tree)
    text = json.dumps(obj, allow_nan=False)
    return decode(json.loads(text), tensors)


def same(left, right):
    """Equal in value and in the type of every part; dicts in order too."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray | np.generic):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left.items(), right.items(), strict=True))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    return left == right


keys = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.sampled_from(["$", "$tuple", "$dict", "a.b"])
)
leaves = st.one_of(
    keys,
    st.floats(),
    st.text(st.characters()),  # lone surrogates among them
    st.integers(-(2**2000), 2**2000),
    st.builds(
        lambda n, dtype: torch.arange(n).to(dtype), st.integers(0, 4), st.sampled_from([torch.int8, torch.float16])
    ),
    st.sampled_from([torch.float8_e5m2, torch.device("cuda:1"), torch.Size([2, 3]), np.float32(0.1), np.bool_(True)]),
    st.builds(np.arange, st.integers(0, 3)),
    st.frozensets(st.one_of(st.integers(), st.text()), max_size=3),
    st.builds(Counter, st.lists(st.integers(0, 3), max_size=4)),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.tuples(keys), inner, max_size=2),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=3).map(lambda d: defaultdict(list, d)),
    ),
    max_leaves=12,
)
json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["$tuple", "$set", "$dict", "$counter", "$size", "$int", "$str", "$bytes", "$float", "$tensor",
                 "$array", "$scalar", "$dtype", "$device", "$defaultdict", "$ordereddict", "$frozenset", "$"]
            ), inner, min_size=1, max_size=2,
        ),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(trees)
def test_every_tree_comes_back_with_its_values_and_types(tree):
    assert same(round_trip(tree), tree)


@settings(deadline=None, max_examples=200)
@given(json_like)
def test_whatever_json_comes_decode_answers_or_raises_value_error(obj):
    with suppress(MalformedState):
        decode(obj, {"": torch.zeros(1), "t": torch.zeros(2, dtype=torch.bfloat16)})


@pytest.mark.parametrize(
    "tree",
    [
        {"$tuple": [1, 2]},
        {"$dict": [[1, 2]]},
        {"$tensor": "x", "other": 1},
        {"$": None},
        {"a": {"$float": "nan"}},
        {True: 1, 0: 2, None: 3, "1": 4},
        {"x": -0.0, "y": 10**400, "z": 10**5000},
        "\ud83d\ude00",  # two code units, not the character that they would spell
        set(),
        (),
        torch.Size([]),
        [np.float64(0.1), np.int64(-1), np.uint16(7), np.array(3.0), np.zeros((0, 2)), np.arange(6)[::-2]],
        random.Random(0).getstate(),
        np.random.RandomState(0).get_state(),
        {"state": np.random.default_rng(0).bit_generator.state},
        {"rng": torch.get_rng_state()},
    ],
)
def test_awkward_values_come_back(tree):
    assert same(round_trip(tree), tree)


def trained(optimizer, parameters, steps=3):
    def closure():
        optimizer.zero_grad()
        loss = sum((parameter**2).sum() for parameter in parameters)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return optimizer


OPTIMIZERS = {
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "adam fused amsgrad": lambda ps: torch.optim.Adam(ps, lr=0.01, fused=True, amsgrad=True),
    "adamw with a tensor lr": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(0.01), capturable=False),
    "sgd momentum": lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9),
    "lbfgs": lambda ps: torch.optim.LBFGS(ps, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_to_the_same_bit(name):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    optimizer = trained(OPTIMIZERS[name](ours), ours)
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    resumed = OPTIMIZERS[name](theirs)
    state = json.loads(json.dumps(encode(optimizer.state_dict())[0]))
    tensors = {key: tensor.clone() for key, tensor in encode(optimizer.state_dict())[1].items()}
    resumed.load_state_dict(decode(state, tensors))
    trained(optimizer, ours)
    trained(resumed, theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


SCHEDULERS = {
    "multistep": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 4, 4, 6], gamma=0.5),
    "onecycle": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.5, total_steps=20),
    "plateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1),
    "sequential": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, total_iters=3), lr_scheduler.MultiStepLR(opt, [3, 5])], milestones=[3]
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_goes_on_with_the_same_rates(name):
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        return optimizer, SCHEDULERS[name](optimizer)

    def run(optimizer, scheduler, steps=5):
        rates = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step(*([1.0] if name == "plateau" else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    optimizer, scheduler = make()
    run(optimizer, scheduler)
    other_optimizer, other_scheduler = make()
    state = round_trip({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    other_optimizer.load_state_dict(state["optimizer"])
    other_scheduler.load_state_dict(state["scheduler"])
    assert run(optimizer, scheduler) == run(other_optimizer, other_scheduler)


def test_tensors_are_named_by_their_place_and_the_same_tensor_stays_the_same():
    weight = torch.ones(2)
    obj, tensors = encode({"a": {"b": weight}, "a.b": torch.zeros(1), "tied": [weight], "__metadata__": torch.ones(1)})
    assert set(tensors) == {"a.b", "a.b#2", "__metadata__#2"}
    tree = decode(obj, tensors)
    assert tree["a"]["b"] is tree["tied"][0]
    assert torch.equal(tree["a.b"], torch.zeros(1))


def test_a_parameter_is_stored_without_its_graph():
    _, tensors = encode({"w": torch.nn.Parameter(torch.ones(1))})
    assert not tensors["w"].requires_grad
    assert type(tensors["w"]) is torch.Tensor


def test_sets_are_written_in_one_order():
    assert encode({"b", "a", "c"}) == encode({"c", "b", "a"})
    assert encode({"b", "a"})[0] == {"$set": ["a", "b"]}


def cyclic():
    tree = []
    tree.append(tree)
    return tree


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda x: x, "a lambda cannot be stored"),
        (cyclic, "the function cyclic"),
        (Colour.RED, "a member of the enum"),
        (Level.LOW, "a member of the enum"),
        (Colour, "the class Colour"),
        (Point(1, 2), r"Point \(a subclass of tuple, which can be\)"),
        (Path("a"), "an object of pathlib"),
        (bytearray(b"a"), "an object of bytearray"),
        (1j, "an object of complex"),
        (defaultdict(None, {1: 2}), "a defaultdict cannot be stored .* store dict"),
        (defaultdict(lambda: 0), "a defaultdict cannot be stored .* store dict"),
        (torch.Generator(), r"torch.Generator \(its get_state\(\) can be\)"),
        (np.datetime64("2000-01-01"), "numpy.datetime64"),
        (np.longdouble(1), "numpy"),
        (np.array(["text"]), "an array of <U4"),
        (np.array([object()]), "an array of object"),
        ({torch.zeros(1): 1}, "a tensor as a key"),
        ({torch.zeros(1)}, "a tensor as a key or in a set"),
        (torch.zeros(1, device="meta"), "meta device"),
        (torch.zeros(2, 2).to_sparse(), "not dense"),
        (torch.nn.UninitializedParameter(), "an UninitializedParameter is not a plain tensor"),
        (cyclic(), "a container that contains itself"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_named_with_its_place(value, said):
    with pytest.raises(UnsupportedState, match=rf"^optimizer\.state\.0\..*foo.*{said}") as caught:
        encode({"optimizer": {"state": {0: {"foo": value}}}})
    assert isinstance(caught.value, TypeError)


def test_the_error_lists_what_is_allowed():
    with pytest.raises(UnsupportedState, match=r"a\.1: .* Allowed: None, bool, int.*load_state_dict"):
        encode({"a": (1, object())})


@pytest.mark.parametrize(
    ("obj", "said"),
    [
        ({"a": [{"$reduce": ["os.system", "true"]}]}, r"a\.0: unknown tag '\$reduce'"),
        ({"a": {"$tuple": [], "b": 1}}, r"a: '\$tuple' must be the only key"),
        ({"a": {"$tuple": {}}}, "a: expected a list, got dict"),
        ({"a": {"$dict": [[1]]}}, "a: expected two values, got 1"),
        ({"a": {"$dict": [[[], 1]]}}, "a: malformed"),
        ({"a": {"$set": [[]]}}, "a: malformed"),
        ({"a": {"$set": [{"$tensor": "t"}]}}, "a: a tensor is no key"),
        ({"a": {"$frozenset": [{"$tensor": "t"}]}}, "a: a tensor is no key"),
        ({"a": {"$dict": [[{"$tensor": "t"}, 1]]}}, "a: a tensor is no key"),
        ({"a": [{"$array": "t"}, {"$array": "t"}]}, r"a\.1: the array 't' stands in two places"),
        ({"a": {"$size": ["x"]}}, "a: malformed"),
        ({"a": {"$bytes": "!"}}, "a: malformed"),
        ({"a": {"$str": "/w=="}}, "a: malformed"),
        ({"a": {"$int": "x"}}, "a: malformed"),
        ({"a": {"$bytes": "ö"}}, "a: malformed"),
        ({"a": {"$tuple": [0, {"$int": "x"}]}}, r"a\.1: malformed"),
        ({"a": {"$float": "1.5"}}, "a: expected 'nan'"),
        ({"a": {"$tensor": "w"}}, "a: the tensor 'w' is missing"),
        ({"a": {"$tensor": 1}}, "a: expected a str, got int"),
        ({"a": {"$dtype": "nn"}}, r"a: malformed '\$dtype': expected the name of a torch dtype"),
        ({"a": {"$device": "moon"}}, "a: malformed"),
        ({"a": {"$scalar": ["object", ""]}}, "a: 0 bytes"),
        ({"a": {"$defaultdict": ["eval", []]}}, "a: malformed"),
        ({"a": float("inf")}, "a: inf of type float"),
        pytest.param({"a": object()}, "a: .* of type object", id="an object"),
        ({1: 2}, "the state: unknown tag 1"),
    ],
    ids=str,
)
def test_malformed_input_is_named_with_its_place(obj, said):
    with pytest.raises(MalformedState, match=f"^{said}"):
        decode(obj, {"t": torch.zeros(1)})


def test_depth_is_limited_both_ways():
    tree = deep = []
    for _ in range(MAX_DEPTH - 1):
        deep.append([])
        deep = deep[0]
    assert round_trip(tree) == tree
    deep.append([])
    with pytest.raises(UnsupportedState, match="deeper than"):
        encode(tree)
    hostile = []
    for _ in range(100_000):
        hostile = [hostile]
    with pytest.raises(ValueError, match="deeper than"):
        decode(hostile, {})
    while hostile:  # taken apart by hand: to let go of it would recurse as deeply
        hostile = hostile.pop()


def test_the_deepest_tree_of_the_costliest_kind_fits_the_stack():
    tree = 0
    for _ in range(MAX_DEPTH - 1):
        tree = OrderedDict({0: tree})
    assert sys.getrecursionlimit() >= 1000
    assert same(round_trip(tree), tree)
