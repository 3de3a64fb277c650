"""The cached teacher: same logits, far fewer runs of the module."""

from __future__ import annotations

import errno
import os

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


def train(teacher, epochs=2, dataset=None, seed=1, **options):
    student = mlp()
    loader = kdengine.loader(dataset or items(), 8, seed=seed, workers=0)
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
    table = folder / "inputs.5.f32"
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
    with pytest.raises(kdengine.CheckpointError, match="items was 32, is 33"):
        train(CachedTeacher(mlp(32), folder, items=33))
    (tmp_path / "cache" / "inputs.rows").write_bytes(b"short")
    with pytest.raises(kdengine.CheckpointError, match="has 5 bytes, expected 512"):
        train(CachedTeacher(mlp(32), folder, items=32))


class Activated(nn.Sequential):
    """The same weights, another function of them."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__(*mlp(32)[:1], activation, *mlp(32)[2:])


class Shifted:
    """A hook that says what it does to inputs."""

    def __init__(self, by: float) -> None:
        self.by, self.identity = by, f"shift by {by}"

    def __call__(self, _module, inputs):
        return (inputs[0] + self.by,)


def shifted(by: float) -> nn.Module:
    module = mlp(32)
    module.register_forward_pre_hook(Shifted(by))
    return module


def with_unsaved(value: float) -> nn.Module:
    module = mlp(32)
    module.register_buffer("mean", torch.tensor(value), persistent=False)
    return module


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (lambda: Activated(nn.ReLU()), lambda: Activated(nn.GELU()), "configuration"),
        (lambda: Activated(nn.LeakyReLU(0.1)), lambda: Activated(nn.LeakyReLU(0.2)), "configuration"),
        (lambda: shifted(0.0), lambda: shifted(1.0), "configuration"),
        (lambda: with_unsaved(0.0), lambda: with_unsaved(1.0), "teacher"),
    ],
    ids=["activation", "option", "transform", "unsaved buffer"],
)
def test_a_teacher_that_is_another_function_is_refused_by_name(tmp_path, before, after, field):
    train(CachedTeacher(before(), str(tmp_path), items=32), epochs=1)
    train(CachedTeacher(before(), str(tmp_path), items=32), epochs=1)
    with pytest.raises(kdengine.CheckpointError, match=rf"another teacher or data set: {field} was"):
        train(CachedTeacher(after(), str(tmp_path), items=32), epochs=1)


def test_logits_of_another_precision_are_refused_by_name(tmp_path):
    train(CachedTeacher(mlp(32), str(tmp_path), items=32), epochs=1, precision="bf16")
    with pytest.raises(kdengine.CheckpointError, match="precision was 'autocast bfloat16', is 'as its parameters'"):
        train(CachedTeacher(mlp(32), str(tmp_path), items=32), epochs=1)


def test_a_cache_of_the_first_format_is_refused_with_words(tmp_path):
    (tmp_path / "cache.json").write_text('{"format": 1, "items": 32, "per_epoch": true, "teacher": ""}')
    with pytest.raises(kdengine.CheckpointError, match=r"format 1, expected 2.*remove the folder"):
        train(CachedTeacher(mlp(32), str(tmp_path), items=32))


def test_seeds_whose_inputs_are_random_have_tables_of_their_own(tmp_path):
    folder = str(tmp_path / "cache")
    for seed in (1, 2, 1, 2):
        module = Counting()
        weights = train(CachedTeacher(module, folder, items=32), dataset=Augmented(), seed=seed)
        assert torch.equal(weights, train(Counting(), dataset=Augmented(), seed=seed)), seed
    assert module.runs == 2, "the second time, evaluations alone"


def test_seeds_whose_inputs_do_not_change_share_one_table(tmp_path):
    train(CachedTeacher(Counting(), str(tmp_path), items=32), seed=1)
    module = Counting()
    train(CachedTeacher(module, str(tmp_path), items=32), seed=2)
    assert module.runs == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache.json", "inputs.5.f32", "inputs.rows"]


class Changed(Augmented):
    """Other inputs at the same positions."""

    def __getitem__(self, index):
        inputs, label = self.data[index]
        return inputs + 1.0, label


class Dims:
    """A callback that changes inputs, whose index stays."""

    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_on_batch(self, context):
        context.batch.inputs = 0.5 * context.batch.inputs
        return context.batch


@pytest.mark.parametrize("other", ["data", "callback", "one number"])
def test_rows_of_other_inputs_are_computed_again_and_said_once(tmp_path, other):
    def options():
        changed = items()
        changed.tensors[0][3, 2] += 1e-3
        return {"data": {"dataset": Changed()}, "callback": {"plugins": [Dims()]}, "one number": {"dataset": changed}}[
            other
        ]

    folder, same = str(tmp_path), {"per_epoch": False, "items": 32}
    train(CachedTeacher(Counting(), folder, **same))
    source = CachedTeacher(Counting(), folder, **same)
    with pytest.warns(UserWarning, match="belonged to other inputs") as said:
        weights = train(source, **options())
    assert len(said) == 1
    assert torch.allclose(weights, train(Counting(), **options()), rtol=1e-6, atol=0)
    assert source.replaced == (1 if other == "one number" else 32)
    again = CachedTeacher(Counting(), folder, **same)
    assert torch.allclose(weights, train(again, **options()), rtol=1e-6, atol=0)
    assert (again.computed, again.replaced, again.served) == (0, 0, 64)


def test_inputs_that_change_although_it_was_said_they_do_not_are_never_served(tmp_path):
    source = CachedTeacher(Counting(), str(tmp_path), items=32, per_epoch=False)
    with pytest.warns(UserWarning, match="belonged to other inputs"):
        weights = train(source, dataset=Augmented())
    assert torch.equal(weights, train(Counting(), dataset=Augmented()))
    assert source.served == 0


class Poisoned(Counting):
    """Gives NaN and infinity for some items while it is ill."""

    ill = True

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = super().forward(inputs)
        if self.ill:
            logits[0, 0], logits[1, 1] = float("nan"), float("inf")
        return logits


def test_logits_that_are_not_finite_are_never_kept(tmp_path):
    source = CachedTeacher(Poisoned(), str(tmp_path), items=32, per_epoch=False)
    train(source, epochs=1, nonfinite="skip")
    well = Poisoned()
    well.ill = False
    source = CachedTeacher(well, str(tmp_path), items=32, per_epoch=False)
    weights = train(source, epochs=1)
    assert torch.isfinite(weights).all()
    assert source.computed > 0
    assert torch.allclose(weights, train(Counting(), epochs=1), rtol=1e-5, atol=1e-7)


def test_a_position_beyond_the_items_is_refused(tmp_path):
    with pytest.raises(kdengine.ConfigurationError, match=r"items=31.*positions"):
        train(CachedTeacher(mlp(32), str(tmp_path), items=31))


def test_a_full_disk_leaves_the_teacher_running_live_and_says_so(tmp_path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    module = Counting()
    with pytest.warns(UserWarning, match=r"cannot be written \(.*No space left.*inputs.rows.*computes what it lacks"):
        weights = train(CachedTeacher(module, str(tmp_path), items=32))
    assert torch.equal(weights, train(Counting()))
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_a_table_takes_its_room_when_it_is_begun(tmp_path):
    train(CachedTeacher(Counting(), str(tmp_path), items=32), epochs=1)
    for path in tmp_path.glob("inputs.*"):
        assert path.stat().st_blocks * 512 >= path.stat().st_size, path


@pytest.mark.parametrize("part", ["inputs.5.f32", "inputs.rows", "cache.json"])
def test_a_link_in_the_folder_is_refused(tmp_path, part):
    (tmp_path / "precious").write_bytes(b"thesis")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / part).symlink_to(tmp_path / "precious")
    with pytest.raises(kdengine.CheckpointError, match="found a link"):
        train(CachedTeacher(mlp(32), str(tmp_path / "cache"), items=32))
    assert (tmp_path / "precious").read_bytes() == b"thesis"


def test_a_loss_that_asks_for_features_is_refused(tmp_path):
    source = CachedTeacher(mlp(32), str(tmp_path / "cache"), items=32)
    with pytest.raises(kdengine.ConfigurationError, match=r"^losses\.hint\.teacher: .* without live modules"):
        train(source, losses={"hint": Hint(student="1", teacher="1")}, weights={})
