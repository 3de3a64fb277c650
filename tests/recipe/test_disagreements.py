from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from kdengine.engine.assembly import Aligner
from kdengine.engine.layout import DISAGREEMENT_IMAGES, DISAGREEMENTS
from kdengine.engine.loader import Loader
from kdengine.recipe.disagreements import find_disagreements, to_uint8, write_disagreements


class Constant(nn.Module):
    """Says the same class of every image, in a logits field."""

    def __init__(self, label: int, classes: int = 3, wrapped: bool = False) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.nn.functional.one_hot(torch.tensor(label), classes).float())
        self.wrapped = wrapped

    def forward(self, inputs):
        logits = self.logits.expand(len(inputs), -1)
        return {"logits": logits} if self.wrapped else logits


def loader(shape=(1, 4, 4), items=30) -> Loader:
    return Loader(torch.utils.data.TensorDataset(torch.rand(items, *shape), torch.arange(items) % 3), 8, shuffle=False)


def write(tmp_path, student, teacher, data=None, **options):
    found = find_disagreements(student, teacher, data or loader(), **options)
    write_disagreements(tmp_path, found, ["a", "b", "c"])
    return json.loads((tmp_path / DISAGREEMENTS).read_text()) if (tmp_path / DISAGREEMENTS).exists() else None


def test_the_first_images_on_which_they_differ_are_kept_with_what_both_say(tmp_path):
    found = write(tmp_path, Constant(0), Constant(2, wrapped=True))
    assert found["classes"] == ["a", "b", "c"]
    assert [item["index"] for item in found["items"]] == list(range(12))
    assert found["items"][1] == {
        "index": 1,
        "label": 1,
        "student": 0,
        "teacher": 2,
        "student_confidence": pytest.approx(0.576, abs=1e-3),
        "teacher_confidence": pytest.approx(0.576, abs=1e-3),
    }
    images = safetensors.torch.load_file(tmp_path / DISAGREEMENT_IMAGES)["images"]
    assert images.shape == (12, 1, 4, 4)
    assert images.dtype == torch.uint8


def test_agreement_leaves_nothing_not_even_what_an_earlier_run_wrote(tmp_path):
    assert write(tmp_path, Constant(0), Constant(1)) is not None
    assert write(tmp_path, Constant(1), Constant(1)) is None
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_no_images_are_passed_over(tmp_path):
    assert write(tmp_path, Constant(0), Constant(1), loader(shape=(5,))) is None


def test_classes_that_do_not_correspond_are_passed_over_and_a_map_makes_them(tmp_path):
    assert write(tmp_path, Constant(0), Constant(4, classes=5)) is None
    found = write(tmp_path, Constant(0), Constant(4, classes=5), align=Aligner([0, 4, 2]))
    assert {item["teacher"] for item in found["items"]} == {1}


def test_modes_of_the_models_are_left_as_found(tmp_path):
    student, teacher = Constant(0).train(), Constant(1).eval()
    write(tmp_path, student, teacher)
    assert student.training
    assert not teacher.training


def test_an_image_of_one_value_is_black():
    assert to_uint8(torch.full((1, 2, 2), 3.0)).tolist() == [[[0, 0], [0, 0]]]
