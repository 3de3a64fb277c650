"""A resume goes on with the fit that was begun, and with no other; what may change is no difference."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

import kdengine
from kdengine.api.given import settings
from kdengine.data.mixing import MixUp
from kdengine.engine import checkpoint
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import CE, DKD, KD
from kdengine.teachers.cached import CachedTeacher
from kdengine.teachers.ema import EMA
from kdengine.teachers.ensemble import Ensemble
from tests.engine.common import CLASSES, engine, items, mlp


def adamw(lr=1e-2, **options):
    return lambda named: torch.optim.AdamW([p for _, p in named], lr=lr, **options)


def begin(out, *, epochs=1, loader=None, resume=None, trained=None, evaluation=None, **options):
    """A fit with everything that can differ, and what is given in its place."""
    options = {
        "losses": {"kd": KD(temperature=2.0), "ce": CE()},
        "weights": {"kd": kdengine.Linear(1.0, 0.5), "ce": 0.1},
        "optimizer": adamw(),
        "lr_scheduler": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
        "batch_transforms": [MixUp(CLASSES, alpha=0.2)],
        "ema": 0.9,
        "seed": 0,
        "out": out,
        **options,
    }
    trained = trained or engine(mlp(), options.pop("teacher", None), **options)
    return trained.fit(loader or kdengine.loader(items(), 8), evaluation, epochs=epochs, resume=resume)


OTHERS = {
    "a loss's argument": ({"losses": {"kd": KD(temperature=8.0), "ce": CE()}}, "losses.kd.temperature was 2.0, is 8.0"),
    "a schedule in its place": (
        {"losses": {"kd": KD(temperature=kdengine.Cosine(4.0, 1.0)), "ce": CE()}},
        r"losses.kd.temperature was 2.0, is \{'use': 'Cosine'",
    ),
    "a default of a loss": ({"losses": {"kd": KD(2.0), "ce": CE(label_smoothing=0.1)}}, "losses.ce.label_smoothing"),
    "a weight's schedule": ({"weights": {"kd": kdengine.Linear(1.0, 0.0), "ce": 0.1}}, "weights.kd was .*0.5.*0.0"),
    "the learning rate": ({"optimizer": adamw(0.5)}, "optimizer.0.lr was 0.01, is 0.5"),
    "betas": ({"optimizer": adamw(betas=(0.8, 0.9))}, r"optimizer.0.betas was \[0.9, 0.999\], is \[0.8, 0.9\]"),
    "weight decay": ({"optimizer": adamw(weight_decay=0.0)}, "optimizer.0.weight_decay"),
    "the scheduler's end": (
        {"lr_scheduler": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps, eta_min=1e-3)},
        "lr_scheduler.eta_min was 0.0, is 0.001",
    ),
    "the average": ({"ema": 0.5}, "ema was 0.9, is 0.5"),
    "no average": ({"ema": None}, "ema was 0.9, is None"),
    "the teacher's weights": ({"teacher": mlp(33)}, "teacher.weights was"),
    "the teacher's type": (
        {"teacher": LiveTeacher(mlp(32), dtype=torch.float64)},
        "teacher.LiveTeacher.dtype was None.*; teacher.weights was",
    ),
    "a transform's argument": ({"batch_transforms": [MixUp(CLASSES, alpha=0.8)]}, "batch_transforms.0.alpha was 0.2"),
    "a class map": ({"classes": [4, 3, 2, 1, 0]}, r"classes was None, is \[4, 3, 2, 1, 0\]"),
    "the order": ({"loader": kdengine.loader(items(), 8, shuffle=False)}, "data.shuffle was True, is False"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    begin(out)
    return out


@pytest.mark.parametrize(("options", "said"), OTHERS.values(), ids=OTHERS)
def test_another_fit_is_refused_by_what_differs(run, options, said):
    with pytest.raises(kdengine.CheckpointError, match=f"belongs to another fit: {said}"):
        begin(run, resume="auto", **options)


def test_every_difference_is_listed_and_the_message_says_how_to_go_on(run):
    with pytest.raises(kdengine.CheckpointError) as caught:
        begin(run, epochs=2, resume="auto", ema=0.5, optimizer=adamw(0.5), losses={"kd": KD(8.0), "ce": CE()})
    for what in ("ema was", "optimizer.0.lr was", "losses.kd.temperature was", "new run directory", "load_run"):
        assert what in str(caught.value)


def test_an_attribute_that_was_set_has_the_last_word(tmp_path):
    loss = KD(temperature=8.0)
    loss.temperature = 2.0
    assert settings(loss)["temperature"] == 2.0
    begin(tmp_path / "run")
    begin(tmp_path / "run", epochs=2, resume="auto", losses={"kd": loss, "ce": CE()})
    loss.temperature = 3.0
    with pytest.raises(kdengine.CheckpointError, match=r"losses\.kd\.temperature was 2\.0, is 3\.0"):
        begin(tmp_path / "run", epochs=3, resume="auto", losses={"kd": loss, "ce": CE()})


HORIZONS = {
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "one cycle": lambda optimizer, steps: OneCycleLR(optimizer, 1e-2, total_steps=steps),
    "warm-up": lambda optimizer, steps: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, 1.0, 2), CosineAnnealingLR(optimizer, steps - 2)], [2]
    ),
    "decay to the end": lambda optimizer, steps: StepLR(optimizer, 1, gamma=0.01 ** (1 / steps)),
    "plateau": lambda optimizer, steps: ReduceLROnPlateau(optimizer, "max", patience=1),
    "none": None,
}


@pytest.mark.parametrize("factory", HORIZONS.values(), ids=HORIZONS)
def test_a_longer_fit_moves_the_horizon_of_its_learning_rate_and_goes_on(tmp_path, factory):
    options = {"lr_scheduler": factory, "metrics": {"top1": "top1"}, "evaluation": kdengine.loader(items(), 8)}
    begin(tmp_path / "run", **options)
    assert begin(tmp_path / "run", epochs=1, resume="auto", **options).steps == 4
    assert begin(tmp_path / "run", epochs=3, resume="auto", **options).steps == 12


def test_an_instance_whose_rate_has_been_scheduled_goes_on(tmp_path):
    student = mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 2, gamma=0.5)
    options = {"optimizer": optimizer, "lr_scheduler": scheduler, "out": tmp_path / "run"}
    trained = engine(student, **options)
    trained.fit(kdengine.loader(items(), 8), epochs=1)
    trained.fit(kdengine.loader(items(), 8), epochs=2, resume="auto")
    again = engine(student, **options)  # another engine around the same objects
    assert again.fit(kdengine.loader(items(), 8), epochs=3, resume="auto").steps == 12


def test_a_loss_that_changes_its_own_numbers_goes_on_in_the_same_process_and_in_another(tmp_path):
    class Cooling(KD):
        """Lowers its temperature as it goes."""

        def __init__(self, temperature=4.0):
            super().__init__(temperature=temperature)

        def end_step(self):
            self.temperature = max(1.0, self.temperature * 0.9)

    options = {"losses": {"kd": Cooling()}, "weights": {}, "out": tmp_path / "run"}
    trained = engine(mlp(), **options)
    trained.fit(kdengine.loader(items(), 8), epochs=1)
    trained.fit(kdengine.loader(items(), 8), epochs=2, resume="auto")
    options["losses"] = {"kd": Cooling()}
    assert engine(mlp(), **options).fit(kdengine.loader(items(), 8), epochs=3, resume="auto").steps == 12


def test_any_source_may_serve_the_same_teacher(tmp_path):
    cached = CachedTeacher(mlp(32), str(tmp_path / "logits"), items=32)
    begin(tmp_path / "run")
    wrapped = torch.compile(mlp(32), backend="eager")
    assert begin(tmp_path / "run", epochs=2, resume="auto", teacher=wrapped).steps == 8
    assert begin(tmp_path / "run", epochs=3, resume="auto", teacher=cached).steps == 12
    assert begin(tmp_path / "run", epochs=4, resume="auto", teacher=LiveTeacher(mlp(32), device="cpu")).steps == 16


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (lambda: EMA(0.9), lambda: EMA(0.99), r"teacher\.EMA\.decay was 0\.9, is 0\.99"),
        (
            lambda: Ensemble([mlp(16), mlp(32)]),
            lambda: Ensemble([mlp(16), mlp(32)], temperature=4.0),
            r"teacher\.Ensemble\.temperature was 1\.0, is 4\.0",
        ),
        (lambda: [mlp(16), mlp(32)], lambda: [mlp(32), mlp(16)], r"teacher\.weights was"),
    ],
    ids=["an average", "an ensemble", "in another order"],
)
def test_another_source_of_the_same_kind_is_refused(tmp_path, first, second, said):
    begin(tmp_path / "run", teacher=first())
    begin(tmp_path / "run", teacher=first(), epochs=2, resume="auto")
    with pytest.raises(kdengine.CheckpointError, match=said):
        begin(tmp_path / "run", teacher=second(), epochs=3, resume="auto")


def test_where_something_runs_or_keeps_its_files_is_no_setting(tmp_path):
    class Remembering(KD):
        """Keeps rows in a file."""

        def __init__(self, store, device, workers=2):
            super().__init__()

    def options(place):
        losses = {"kd": Remembering(store=f"{place}/rows", device=place, workers=len(place)), "ce": CE()}
        return {"losses": losses}

    begin(tmp_path / "run", **options("cpu"))
    assert begin(tmp_path / "run", epochs=2, resume="auto", **options("cuda:1")).steps == 8


def rewrite_signature(run, change):
    """Change what every checkpoint says of its fit, as an earlier version wrote it."""

    for path in (run / "checkpoints").glob("step-*"):
        tree, meta = checkpoint.load(path)
        change(meta["fit"])
        checkpoint.save(path.parent, int(path.name.removeprefix("step-")), tree, meta=meta, replace=True)


def test_a_checkpoint_from_before_settings_were_kept_goes_on(tmp_path):
    begin(tmp_path / "run")
    rewrite_signature(tmp_path / "run", lambda fit: fit.pop("settings"))
    assert begin(tmp_path / "run", epochs=2, resume="auto", ema=0.5).steps == 8


def test_a_setting_that_one_of_both_versions_does_not_know_is_not_compared(tmp_path):
    def change(fit):
        fit["settings"]["losses.kd.forgotten"] = 1
        del fit["settings"]["losses.kd.hard_weight"]

    begin(tmp_path / "run")
    rewrite_signature(tmp_path / "run", change)
    assert begin(tmp_path / "run", epochs=2, resume="auto").steps == 8


def test_a_data_loader_with_batches_of_another_size_is_refused(tmp_path):
    def fit(size, **options):
        loader = torch.utils.data.DataLoader(items(), size)
        trained = engine(out=tmp_path / "run")
        return trained.fit(loader, epochs=options.pop("epochs"), steps_per_epoch=2, **options)

    fit(8, epochs=1)
    with pytest.raises(kdengine.CheckpointError, match=r"loader\.batch_size was 8, is 16"):
        fit(16, epochs=2, resume="auto")


@pytest.mark.parametrize(
    ("loss", "known"),
    [
        (DKD(alpha=2.0), {"alpha": 2.0}),
        (
            kdengine.from_callable(nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none"), "labels"),
            {"target": "labels"},
        ),
        (KD(temperature=kdengine.Linear(4.0, 1.0)), {"temperature": {"use": "Linear", "start": 4.0, "end": 1.0}}),
    ],
    ids=["keywords", "a criterion", "a schedule"],
)
def test_what_a_loss_was_made_with_is_known_and_can_be_written(loss, known):
    found = settings(loss)
    for name, value in known.items():
        assert found[name] == value or value.items() <= found[name].items()
    json.dumps(found, allow_nan=False)


def test_a_loss_whose_constructor_is_of_another_kind_is_no_trouble():
    class Odd(kdengine.Loss):
        def __new__(cls, *_):
            return super().__new__(cls)

        def __init__(self, tensor, fn, /, *rest, scale=float("inf"), **more):
            super().__init__()

    assert settings(Odd(torch.ones(2), print, 1, 2)) == {}
    with pytest.raises(TypeError):
        KD(temperatur=2.0)
