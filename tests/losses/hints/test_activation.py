"""Losses on features before the activation say where they are given others."""

import warnings

import pytest
import torch

import kdengine
from kdengine.api.errors import KDEngineWarning
from kdengine.losses import AB, OFD, Hint
from kdengine.models.resnet import resnet8

from .common import PATHS, on_features, prepared, random

SHAPE = (4, 3, 5, 5)


def made(loss):
    return {"ofd": OFD(**PATHS, margin=-0.5), "ab": AB(**PATHS)}[loss]


@pytest.mark.parametrize("loss", ["ofd", "ab"])
@pytest.mark.parametrize(
    ("student", "teacher", "said"),
    [
        (random(*SHAPE), random(*SHAPE, seed=1).relu(), "but the teacher's 'hidden' gave no negative value"),
        (random(*SHAPE).relu(), random(*SHAPE, seed=1), "but the student's 'hidden' gave"),
        (random(*SHAPE).sigmoid(), random(*SHAPE).relu(), "but the student's 'hidden' and the teacher's 'hidden' gave"),
    ],
    ids=["teacher", "student", "both"],
)
def test_features_behind_an_activation_are_told(loss, student, teacher, said):
    with pytest.warns(KDEngineWarning, match=f"{loss} compares features before .* {said}"):
        prepared(made(loss), on_features(student, teacher))


@pytest.mark.parametrize("loss", ["ofd", "ab"])
def test_features_before_an_activation_are_no_news(loss):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(made(loss), on_features(random(*SHAPE), random(*SHAPE, seed=1)))


@pytest.mark.parametrize("loss", ["ofd", "ab"])
@pytest.mark.parametrize("items", [0, 1])
def test_a_few_values_say_nothing(loss, items):
    feature = random(items, 3, 2, 2).abs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(made(loss), on_features(feature, feature))


@pytest.mark.parametrize(("path", "warned"), [("layer?", True), ("layer?.0.relu:input", False)])
def test_a_fit_warns_once_and_before_it_trains(path, warned):
    torch.manual_seed(0)
    student, teacher = resnet8(), resnet8()
    losses = {"ofd": OFD(path, path, margin=-0.5), "hint": Hint("layer?", "layer?")}
    sgd = lambda named: torch.optim.SGD([parameter for _, parameter in named], lr=0.0)  # noqa: E731
    engine = kdengine.Engine(student, teacher, losses=losses, optimizer=sgd, loggers=[], device="cpu")
    batches = [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))] * 3
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        engine.fit(batches, epochs=1)
    found = [str(warning.message) for warning in seen if "before the activation" in str(warning.message)]
    assert len(found) == (3 if warned else 0)  # one for each pair
