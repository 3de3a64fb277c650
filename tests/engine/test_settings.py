"""Every setting of a fit is checked in one place, and the recipe's schema has the same limits."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import kdengine
from kdengine.data.mixing import MixUp
from kdengine.engine.settings import CHOICES, LIMITS, Settings, check_setting
from kdengine.losses import CE, KD
from kdengine.recipe.schema import EvaluateTable, TrainTable
from tests.engine.common import engine, flat, items, mlp, sgd

MEANINGLESS = [
    ("log_every", 0), ("log_every", -1), ("log_every", 2.5), ("log_every", True), ("log_every", math.inf),
    ("log_every", None), ("evaluate_every", 0), ("checkpoint_every", 0), ("checkpoint_every", "10"), ("keep", 0),
    ("keep", -1), ("accumulate", 0), ("accumulate", 1.5), ("seed", -1), ("seed", "0"), ("seed", 0.5),
    ("clip", -1.0), ("clip", 0.0), ("clip", math.nan), ("clip", "1.0"), ("clip", True), ("ema", 0.0), ("ema", 1.0),
    ("ema", math.nan), ("ema", "0.9"), ("nonfinite", "skipp"), ("nonfinite", None), ("precision", "float16"),
    ("precision", torch.bfloat16), ("strategy", "dp"), ("monitor_mode", "higher"), ("monitor", 3), ("name", None),
    ("compile", "reduce-overhead"), ("compile", 2), ("gradient_shares", "no"), ("trace_hooks", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), MEANINGLESS)
def test_a_setting_that_means_nothing_is_refused_by_name_before_anything_trains(name, value):
    with pytest.raises(kdengine.ConfigurationError, match=rf"^{name} must be .*got {str(value)[:4]}|^{name} must be"):
        engine(**{name: value})


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "3", True, None])
def test_epochs_are_a_whole_number_of_at_least_one(epochs, tmp_path):
    with pytest.raises(kdengine.ConfigurationError, match=r"epochs must be a whole number, at least 1"):
        engine(out=tmp_path / "run").fit(kdengine.loader(items(), 8), epochs=epochs)
    assert not (tmp_path / "run").exists()


def test_a_negative_clip_cannot_turn_gradients_around():
    student = mlp()
    before = flat(student).clone()
    with pytest.raises(kdengine.ConfigurationError, match=r"clip must be a number above 0 .* got -1; clip=None"):
        engine(student, clip=-1).fit(kdengine.loader(items(), 8), epochs=1)
    assert torch.equal(before, flat(student))


def test_numbers_of_numpy_are_numbers_and_an_infinite_clip_measures_the_norm():
    settings = Settings(
        log_every=np.int64(3), clip=np.float32(0.5), ema=np.float64(0.9), gradient_shares=np.bool_(True)
    )
    assert (settings.log_every, settings.clip, settings.ema) == (3, 0.5, 0.9)
    assert (type(settings.log_every), type(settings.clip), settings.gradient_shares) == (int, float, True)
    plain, limitless = mlp(), mlp()
    for student, clip in ((plain, None), (limitless, math.inf)):
        engine(student, clip=clip).fit(kdengine.loader(items(), 8), epochs=1)
    assert torch.equal(flat(plain), flat(limitless))


@pytest.mark.parametrize(
    ("table", "key", "setting"),
    [(TrainTable, name, name) for name in (*LIMITS, *CHOICES) if name in TrainTable.model_fields]
    + [(EvaluateTable, "every", "evaluate_every"), (EvaluateTable, "monitor_mode", "monitor_mode")],
)
def test_what_the_recipe_refuses_the_engine_refuses_too(table, key, setting):
    required = {"epochs": 1} if table is TrainTable else {}
    for value in (-1, 0, 1, 0.5, 1.5, 10**6, math.nan, "1", True, *(CHOICES.get(setting, ())), "unknown"):
        try:
            table(**{**required, key: value})
        except ValidationError:
            with pytest.raises(kdengine.ConfigurationError):
                check_setting(setting, value)
        else:
            assert check_setting(setting, value) == value


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"kd": math.nan}, "finite number"),
        ({"kd": math.inf}, "finite number"),
        ({"kd": "0.9"}, "finite number"),
        ({"kd": kdengine.Linear}, "finite number or a schedule"),
        ({"kd": torch.nn.Parameter(torch.ones(()))}, "does not learn"),
        ([0.9], "1 numbers for 2 losses"),
        (0.5, "a float"),
        ("kd", "a str"),
    ],
)
def test_a_weight_that_is_none_is_refused(weights, said):
    with pytest.raises(kdengine.ConfigurationError, match=said):
        engine(weights=weights)


def test_a_list_of_weights_goes_to_the_losses_in_order():
    by_label, in_order = mlp(), mlp()
    losses = {"kd": KD(temperature=2.0), "ce": CE()}
    for student, weights in ((by_label, {"kd": 0.9, "ce": 0.1}), (in_order, [0.9, 0.1])):
        engine(student, losses=losses, weights=weights).fit(kdengine.loader(items(), 8), epochs=1)
    assert torch.equal(flat(by_label), flat(in_order))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": "images"}, "batch must be a function"),
        ({"output": 3}, "output.* must be a function"),
        ({"batch_transforms": [MixUp]}, "expected instances"),
        ({"batch_transforms": "mixup"}, "expected instances"),
        ({"student": "resnet18"}, "student must be a torch.nn.Module, got str"),
        ({"student": mlp}, "a class or factory: call it first"),
        ({"out": 3}, "out must be the path"),
        ({"classes": [0, 1, -1]}, "counted from 0"),
        ({"classes": [0.0, 1.0]}, "counted from 0"),
        ({"classes": "share"}, "must be 'shared'"),
    ],
)
def test_what_is_of_another_kind_is_refused_before_training(options, said):
    with pytest.raises(kdengine.ConfigurationError, match=said):
        engine(**options)


@pytest.mark.parametrize("resume", ["never", "Auto", "false", 1, 0])
def test_a_resume_that_is_no_known_word_is_not_taken_for_yes(resume, tmp_path):
    with pytest.raises(kdengine.ConfigurationError, match="resume must be 'auto', True, False or None"):
        engine(out=tmp_path / "run").fit(kdengine.loader(items(), 8), epochs=1, resume=resume)


def test_weights_that_are_all_zero_are_warned_of():
    with pytest.warns(UserWarning, match="nothing is learned"):
        engine(weights={"kd": 0.0, "ce": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(weights={"kd": 0.0})
        engine(weights={"kd": 0.0, "ce": kdengine.WarmUp(1.0)})


def test_one_logger_needs_no_list():
    records = []
    engine(loggers=lambda record, step: records.append(record), log_every=1).fit(kdengine.loader(items(), 8), epochs=1)
    assert len(records) == 4


def test_one_batch_transform_needs_no_list():
    seen = []

    class Watch(kdengine.BatchTransform):
        def __call__(self, batch, generator):
            seen.append(batch.size)
            return batch

    kdengine.Engine(mlp(), losses=[CE()], optimizer=sgd, loggers=[], batch_transforms=Watch()).fit(
        kdengine.loader(items(), 8), epochs=1
    )
    assert seen == [8] * 4
