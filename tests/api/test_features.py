"""How a loss names features."""

import pickle

import pytest
import torch

from kdengine.api import ConfigurationError
from kdengine.api.errors import LossError
from kdengine.api.features import expand, resolve, select

KNOWN = ["", "stem", "layer1", "layer1.0", "layer1.0.conv", "layer1.1", "layer1.1.conv", "layer2", "odd[1]", "odd1"]


@pytest.mark.parametrize(
    ("patterns", "paths"),
    [
        (["layer1.0.conv"], ["layer1.0.conv"]),
        (["layer?"], ["layer1", "layer2"]),
        (["*"], ["stem", "layer1", "layer2", "odd[1]", "odd1"]),
        (["layer1.*.conv:input"], ["layer1.0.conv:input", "layer1.1.conv:input"]),
        (["layer2", "layer*"], ["layer2", "layer1"]),
        (["layer2", "layer2:input"], ["layer2", "layer2:input"]),
        ([""], [""]),
        ([":input"], [":input"]),
        (["odd[1]"], ["odd[1]"]),
        (["[!l]*"], ["stem", "odd[1]", "odd1"]),
    ],
)
def test_patterns_name_paths_in_the_order_of_the_modules_and_each_once(patterns, paths):
    assert expand(patterns, KNOWN) == paths


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("layer1.2", "there is no module 'layer1.2'; did you mean 'layer1.1', 'layer1.0' or 'layer2'?"),
        ("*.bn", "there is no module '*.bn'; the modules at the top are 'stem', 'layer1', 'layer2', 'odd[1]', 'odd1'"),
        ("stemm:input", "there is no module 'stemm'; did you mean 'stem'?"),
    ],
)
def test_what_names_nothing_is_told_with_what_is_near(pattern, said):
    with pytest.raises(ConfigurationError) as caught:
        expand(["stem", pattern], KNOWN)
    assert str(caught.value) == said


def test_features_are_selected_as_they_were_asked_for():
    features = {name: torch.tensor([float(at)]) for at, name in enumerate(["a", "b", "b:input", "c.d:input", "e*"])}
    assert resolve(features, ["?"]) == ["a", "b"]
    assert resolve(features, ["?:input", "*.*:input"]) == ["b:input", "c.d:input"]
    assert resolve(features, ["e*", "a"]) == ["e*", "a"], "a path of its own before a pattern"
    assert [float(value) for value in select(features, ["b", "*"])] == [1.0, 0.0, 4.0]
    with pytest.raises(ConfigurationError, match="no feature 'c:input' arrived; there are 'a', 'b', 'b:input'"):
        select(features, ["c:input"])


def test_an_error_of_a_loss_travels_between_processes():
    error = pickle.loads(pickle.dumps(LossError("reason", "kd", "temperature")))
    assert (str(error), error.place) == ("losses.kd.temperature: reason", ("losses", "kd", "temperature"))
