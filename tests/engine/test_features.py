"""Features by module path: hooks live as long as a fit needs them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.features import Capture
from tests.engine.common import engine, items, mlp


def test_a_capture_hands_over_what_arrived_once():
    module = mlp()
    capture = Capture(module, ["1", "1"], "student")
    capture.attach()
    output = module(torch.randn(2, 12))
    assert output.shape == (2, 5)
    assert capture.take()["1"].shape == (2, 8)
    with pytest.raises(kdengine.ConfigurationError, match="no feature arrived from '1'"):
        capture.take()
    capture.remove()
    assert not module[1]._forward_hooks


def test_an_unknown_path_names_the_nearest():
    module = nn.ModuleDict({"layer1": nn.Linear(1, 1), "layer2": nn.Linear(1, 1)})
    with pytest.raises(kdengine.ConfigurationError, match="did you mean 'layer1'"):
        Capture(module, ["layr1"], "teacher")


def test_setup_sees_real_shapes_and_leaves_random_state_and_statistics_as_found():
    class NeedsShapes(kdengine.Loss):
        needs = kdengine.Needs(logits=False, student_features=("0",), teacher_features=("0",))

        def setup(self, example):
            torch.rand(7)
            self.shapes = (example.student.features["0"].shape[1:], example.teacher.features["0"].shape[1:])

        def per_item(self, batch):
            return batch.student.features["0"].square()

    student = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))
    loss = NeedsShapes()
    trained = engine(student, losses={"shapes": loss}, weights={})
    before = torch.get_rng_state(), student[1].running_mean.clone()
    trained._models(lambda: kdengine.Batch(items()[:8][0]))
    assert loss.shapes == ((8,), (32,))
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], student[1].running_mean)
