"""The cached teacher: same logits, far fewer runs of the module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdengine
from kdengine.losses import Hint
from kdengine.teachers.cached import CachedTeacher
from tests.engine.common import engine, flat, items, mlp


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(32)
        self.runs = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.net(inputs)


class Augmented:
    """Random noise on every input."""

    def __init__(self) -> None:
        self.data = items()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        inputs, label = self.data[index]
        return inputs + 0.1 * torch.randn(inputs.shape), label


def train(teacher, epochs=2, dataset=None, **options):
    student = mlp()
    loader = kdengine.loader(dataset or items(), 8, seed=1, workers=0)
    engine(student, teacher, metrics={"agreement": "agreement"}, **options).fit(
        loader, kdengine.loader(items(16), 16, shuffle=False), epochs=epochs
    )
    return flat(student)


def test_inputs_that_never_change_cost_one_epoch_of_teacher_runs(tmp_path):
    module = Counting()
    cached = train(CachedTeacher(module, str(tmp_path / "cache"), items=32, per_epoch=False), epochs=3)
    assert module.runs == 4 + 3, "one epoch of training batches; every evaluation runs live"
    assert torch.allclose(cached, train(Counting(), epochs=3), rtol=0, atol=1e-6)


def test_under_augmentation_a_second_run_needs_no_teacher_run_and_learns_the_same(tmp_path):
    first, second = Counting(), Counting()
    folder = str(tmp_path / "cache")
    weights = train(CachedTeacher(first, folder, items=32), dataset=Augmented())
    assert torch.equal(weights, train(Counting(), dataset=Augmented()))
    assert torch.equal(weights, train(CachedTeacher(second, folder, items=32), dataset=Augmented()))
    assert (first.runs, second.runs) == (8 + 2, 2)


def test_a_damaged_row_is_computed_again(tmp_path):
    folder = tmp_path / "cache"
    weights = train(CachedTeacher(Counting(), str(folder), items=32))
    table = folder / "epoch-00000.5.f32"
    data = bytearray(table.read_bytes())
    data[40] ^= 1
    table.write_bytes(data)
    module = Counting()
    assert torch.equal(weights, train(CachedTeacher(module, str(folder), items=32)))
    assert module.runs == 1 + 2


def test_the_cache_of_another_teacher_or_data_set_is_refused(tmp_path):
    folder = str(tmp_path / "cache")
    train(CachedTeacher(mlp(32), folder, items=32))
    with pytest.raises(kdengine.CheckpointError, match="another teacher"):
        train(CachedTeacher(mlp(33), folder, items=32))
    with pytest.raises(kdengine.CheckpointError, match="items was 32, is 31"):
        train(CachedTeacher(mlp(32), folder, items=31))
    (tmp_path / "cache" / "epoch-00000.crc").write_bytes(b"short")
    with pytest.raises(kdengine.CheckpointError, match="has 5 bytes, expected 128"):
        train(CachedTeacher(mlp(32), folder, items=32))


def test_a_loss_that_asks_for_features_is_refused(tmp_path):
    source = CachedTeacher(mlp(32), str(tmp_path / "cache"), items=32)
    with pytest.raises(kdengine.ConfigurationError, match=r"^losses\.hint\.teacher: .* without live modules"):
        train(source, losses={"hint": Hint(student="1", teacher="1")}, weights={})
