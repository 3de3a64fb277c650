"""The kit's own batches: features at paths and patterns, and models behind the outputs."""

import pytest
import torch

import kdengine
from kdengine.api import Needs
from kdengine.api.features import select
from kdengine.losses import Hint
from kdengine.testing import certify_loss, check_loss
from kdengine.testing.samples import feature_shapes, make_equal, paths_of, random_batch


class Maps(kdengine.Loss):
    """Squared error between what two patterns name."""

    at_equality = "zero"

    def __init__(self, student="layer*", teacher="block.?:input"):
        super().__init__()
        self.needs = Needs(logits=False, student_features=(student,), teacher_features=(teacher,))

    def per_item(self, batch):
        students = select(batch.student.features, self.needs.student_features)
        teachers = select(batch.teacher.features, self.needs.teacher_features)
        pairs = zip(students, teachers, strict=True)
        return torch.stack([(s - t).float().square().flatten(1).mean(1) if s.itemsize < 4
                            else (s - t).square().flatten(1).mean(1) for s, t in pairs]).sum(0)  # fmt: skip


def batch_of(loss, features=None):
    return random_batch(loss, 3, torch.Generator().manual_seed(0), features)


@pytest.mark.parametrize("pattern", ["layer*", "layer?", "layer[0-9]", "layer[!12]", "a.*.b:input", "[ab].c*"])
def test_a_pattern_stands_for_two_paths_that_it_names(pattern):
    paths = paths_of(pattern, ())
    assert len(set(paths)) == 2
    assert select(dict.fromkeys(paths, torch.zeros(1)), [pattern])
    assert all("*" not in path for path in paths)


def test_a_pattern_stands_for_the_given_paths_that_it_names():
    assert paths_of("layer*", ["layer3", "layer3:input", "layer4.conv", "layer1"]) == ["layer3", "layer1"]
    assert paths_of("layer*:input", ["layer3", "layer3:input"]) == ["layer3:input"]
    assert paths_of("layer3:input", ["layer4"]) == ["layer3:input"]


def test_features_have_the_one_shape_that_is_given_or_are_vectors():
    assert {v.shape for v in batch_of(Maps()).student.features.values()} == {(3, 6)}
    assert {v.shape for v in batch_of(Maps(), (8, 4, 4)).student.features.values()} == {(3, 8, 4, 4)}


def test_features_have_the_shapes_that_are_given_by_path_or_pattern():
    shapes = {"layer1": (8, 4, 4), "layer2": (4, 2, 2), "block.?:input": (5,)}
    batch = batch_of(Maps(), shapes)
    assert [tuple(v.shape) for v in batch.student.features.values()] == [(3, 8, 4, 4), (3, 4, 2, 2)]
    assert [tuple(v.shape) for v in batch.teacher.features.values()] == [(3, 5), (3, 5)]
    assert list(batch.teacher.features) == ["block.1:input", "block.2:input"]


def test_a_path_without_a_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="no shape for 'layer1'; it names 'conv'"):
        feature_shapes(["layer1"], {"conv": (3,)})


def test_the_kit_accepts_losses_on_features_of_any_shape():
    check_loss(Maps, features=(4, 2, 2))
    check_loss(Hint, student="a", teacher="b", features={"a": (2, 3, 3), "b": (3, 2, 2)})


def test_a_model_stands_behind_each_output_in_the_mode_of_a_fit():
    batch = batch_of(Maps(), (8, 4, 4))
    assert batch.student.module.training
    assert not any(module.training for module in batch.teacher.module.modules())
    assert not any(parameter.requires_grad for parameter in batch.teacher.module.parameters())
    assert batch.student.module.get_submodule("layer1").num_features == 8
    assert batch.teacher.module.get_submodule("block.2").num_features == 8
    assert batch.teacher.module(batch.inputs).shape == (3, 5)


def test_a_teacher_that_trains_is_in_training_mode():
    class Mutual(kdengine.Loss):
        needs = Needs(teacher_gradients=True, teacher_training=True)

    module = batch_of(Mutual()).teacher.module
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_student_is_made_equal_to_its_teacher_feature_by_feature():
    loss = Maps()
    batch = batch_of(loss)
    equal = make_equal(batch, loss.needs)
    for one, other in zip(equal.student.tensors(), batch.teacher.tensors(), strict=True):
        assert torch.equal(one, other)
    assert list(equal.student.features) == ["layer1", "layer2"]
    assert make_equal(batch_of(loss, {"layer*": (3,), "block.?:input": (4,)}), loss.needs) is None


def test_equality_is_tried_on_features():
    rows = {row.check: row for row in certify_loss(Maps).rows}
    assert rows["equality"].outcome == "held"
    shapes = {"s": (2,), "t": (3,)}
    certificate = certify_loss(Projected, student="s", teacher="t", features=shapes)
    assert "different shapes" in next(row.message for row in certificate.rows if row.check == "equality")


class Projected(Hint):
    at_equality = "zero"
