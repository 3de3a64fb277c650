"""Checkpoints that are whole and of the right form, whose content would do harm once it is used."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import kdengine
from kdengine.engine import random
from tests.engine.common import engine, items, mlp
from tests.security.hostile import rewrite_json, rewrite_state

WIDE = 512  # an update that goes beyond a state of one element would go far


def fit(out, *, epochs=1, resume=None, scheduler=None, loader=None, fused=None):
    def optimizer(named):
        return torch.optim.Adam([parameter for _, parameter in named], lr=1e-2, fused=fused)

    def rates(optimizer, steps):
        return scheduler and scheduler(optimizer)

    trained = engine(mlp(WIDE), out=out, seed=1, optimizer=optimizer, lr_scheduler=rates if scheduler else None)
    return trained.fit(loader or kdengine.loader(items(), 8, seed=2), epochs=epochs, resume=resume)


@cache
def trained():
    """The run directory of a fit with no options, to be copied."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    fit(folder / "run")
    return folder / "run"


def changed(out, change, **options):
    """Train, or copy what was trained, and change the checkpoint; returns it."""
    if options:
        fit(out, **options)
    else:
        shutil.copytree(trained(), out)
    (latest,) = (out / "checkpoints").iterdir()
    rewrite_state(latest, change)
    return latest


def assert_refused(out, change, said, **options):
    """Resume from a changed checkpoint in a process of its own, which may well crash."""
    changed(out, change, **options)
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(kdengine.CheckpointError, match=said):
                fit(out, epochs=2, resume=True, **options)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "see the output"


def optimizer_state(key, value):
    return lambda tree: tree["optimizer"]["state"][0].update({key: value})


def option(key, value):
    return lambda tree: tree["optimizer"]["param_groups"][0].update({key: value})


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1), torch.zeros(WIDE, 6), torch.zeros(12, WIDE), torch.zeros(1).expand(WIDE, 12), torch.zeros(0)],
    ids=["one", "half", "transposed", "expanded", "empty"],
)
@pytest.mark.parametrize("options", [{"fused": True}, {}], ids=["fused", "fused by the file"])
def test_state_that_a_fused_update_would_leave_is_refused(tmp_path, value, options):
    def change(tree):
        option("fused", True)(tree)
        optimizer_state("exp_avg", value)(tree)

    assert_refused(tmp_path / "run", change, r"the optimizer's exp_avg (is|has the strides) \(", **options)


def test_a_step_count_of_no_size_is_refused(tmp_path):
    assert_refused(tmp_path / "run", optimizer_state("step", torch.zeros(0)), "the optimizer's step", fused=True)


@pytest.mark.parametrize("step", [-1, -1e9, float("inf"), float("nan")])
def test_a_step_count_that_no_power_can_have_is_refused(tmp_path, step):
    assert_refused(tmp_path / "run", optimizer_state("step", torch.tensor(step)), "the optimizer's step")


def test_a_fused_optimizer_s_own_state_is_taken(tmp_path):
    fit(tmp_path / "run", fused=True)
    assert fit(tmp_path / "run", epochs=2, resume=True, fused=True).steps == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", "high"), ("lr", None), ("lr", [1.0]), ("betas", 0.9), ("eps", {}), ("maximize", 3.0)],
)
def test_options_of_another_kind_are_refused(tmp_path, key, value):
    assert_refused(tmp_path / "run", option(key, value), f"expected the optimizer's {key} to be")


@pytest.mark.parametrize("betas", [(0.9,), (0.9, "x"), (), (1e200, 0.9), (0.9, 1.0), (-0.1, 0.9)])
def test_betas_that_are_no_pair_of_numbers_below_one_are_refused(tmp_path, betas):
    assert_refused(tmp_path / "run", option("betas", betas), "expected 2 betas")


@pytest.mark.parametrize(
    ("key", "value"), [("exp_avg", 5), ("exp_avg_sq", [1.0]), ("step", "one"), ("exp_avg", torch.zeros(3))], ids=str
)
def test_state_of_another_kind_is_refused(tmp_path, key, value):
    assert_refused(tmp_path / "run", optimizer_state(key, value), f"the optimizer's {key} is|could not convert")


def test_a_missing_option_or_state_is_refused(tmp_path):
    assert_refused(tmp_path / "a", lambda tree: tree["optimizer"]["param_groups"][0].pop("lr"), "lr is missing")
    assert_refused(tmp_path / "b", lambda tree: tree["optimizer"]["state"][0].pop("exp_avg"), "exp_avg is missing for")


def test_a_scheduler_s_method_is_not_replaced(tmp_path):
    def scheduler(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def change(tree):
        tree["steps"] = 8
        tree["lr_scheduler"]["step"] = 1

    assert_refused(tmp_path / "run", change, "'step', which is a method", scheduler=scheduler)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["epoch_means"].update(sums=[0.0]),
        lambda tree: tree["interval"].update(counts=["x", "y"]),
        lambda tree: tree["interval"].update(loss="x"),
        lambda tree: tree.update(best={"value": 0.5}),
        lambda tree: tree.update(best={"value": "x", "step": 1}),
        lambda tree: tree["loggers"].update(jsonl={"bytes": -1}),
    ],
)
def test_records_of_another_kind_are_refused(tmp_path, change):
    assert_refused(tmp_path / "run", change, "step-00000004 cannot be gone back to|expected the bytes")


@pytest.mark.parametrize("value", [1, 1.0, torch.tensor(0.5)], ids=str)
def test_numbers_may_be_of_any_class(tmp_path, value):
    changed(tmp_path / "run", option("weight_decay", value))
    assert fit(tmp_path / "run", epochs=2, resume=True).steps == 8


@pytest.mark.parametrize("position", [625, 10**6, 10**9, -1, -(10**9), 2**70, True, "0"])
def test_a_position_outside_of_numpy_s_generator_is_refused(tmp_path, position):
    def change(tree):
        tree["random"][0]["numpy"][2] = position

    assert_refused(tmp_path / "run", change, "state of NumPy's generator")


def test_the_end_of_numpy_s_generator_is_within():
    with random.preserved():
        state = random.capture()
        state["numpy"][2] = 624
        random.restore(state)
        np.random.randint(0, 2**31)


def test_the_random_state_of_an_epoch_is_tried_before_it_is_needed(tmp_path):
    def change(tree):
        tree["epoch_random"][0]["numpy"][2] = 10**9

    loader = torch.utils.data.DataLoader(items(), 8, shuffle=True)
    assert_refused(tmp_path / "run", change, "state of NumPy's generator", loader=loader)


@pytest.mark.parametrize(
    ("position", "said"),
    [
        ({"epoch": 0, "batch": 10**15, "step": 0}, "at most 4 batches"),
        ({"epoch": -1, "batch": 0, "step": 0}, "numbers of epoch"),
        ({"epoch": 0, "batch": 0, "step": "0"}, "numbers of epoch"),
        ({"epoch": 0.5, "batch": 0, "step": 0}, "numbers of epoch"),
        ({"epoch": 0, "batch": 0}, "KeyError"),
        (None, "TypeError"),
    ],
    ids=str,
)
def test_a_position_where_training_cannot_have_come_is_refused(tmp_path, position, said):
    assert_refused(tmp_path / "run", lambda tree: tree.update(position=position), said)


def test_a_rate_is_not_replayed_for_more_steps_than_there_are(tmp_path):
    def change(tree):
        tree["position"].update(step=10**15)
        tree["steps"] = 10**15

    def scheduler(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 2)

    changed(tmp_path / "run", change, scheduler=scheduler)
    assert fit(tmp_path / "run", epochs=2, resume=True, scheduler=scheduler).steps == 10**15 + 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    ["student", "optimizer", "losses", "random", "position", "history", "steps", "plugins", "loggers", "interval"],
)
@pytest.mark.parametrize("value", [None, [], {"other": 1}, "text", 2**70], ids=str)
def test_any_part_that_is_another_is_a_checkpoint_error_or_harmless(tmp_path_factory, key, value):
    out = tmp_path_factory.mktemp("part") / "run"
    latest = changed(out, lambda tree: tree.update({key: value}))
    try:
        fit(out, epochs=2, resume=True)
    except kdengine.CheckpointError as error:
        assert latest.name in str(error)  # noqa: PT017 - it need not be raised


@pytest.mark.parametrize("key", ["fit", "fingerprint"])
def test_meta_that_lacks_what_is_compared_is_a_checkpoint_error(tmp_path, key):
    latest = changed(tmp_path / "run", lambda tree: None)
    tree, meta = kdengine.engine.checkpoint.load(latest)
    for other in ({name: value for name, value in meta.items() if name != key}, meta | {key: [1]}):
        kdengine.engine.checkpoint.save(latest.parent, 4, tree, meta=other, replace=True)
        with pytest.raises(kdengine.CheckpointError, match="cannot be gone back to"):
            fit(tmp_path / "run", epochs=2, resume=True)


@pytest.fixture
def run(kd, finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        lambda summary: summary.pop("student"),
        lambda summary: summary["student"].pop("metrics"),
        lambda summary: summary["student"].update(parameters="many"),
        lambda summary: summary["student"].update(seconds=[]),
        lambda summary: summary.update(data=None),
        lambda summary: summary["data"].pop("labelled"),
        lambda summary: summary.update(teacher=[]),
        lambda summary: summary["student"].update(metrics={"top1": "high"}),
        lambda summary: summary.update(seeds={}),
    ],
)
def test_a_summary_that_no_run_has_written_is_told_on_resume(kd, run, change):
    rewrite_json(run / "summary.json", change)
    code, _, err = kd("run", "--resume", "--out", run)
    assert code == 2, err
    assert "summary.json is damaged" in err


@pytest.mark.parametrize(
    "change", [lambda s: s.pop("seed"), lambda s: s.update(seeds=5), lambda s: s.update(epochs="1")]
)
def test_other_changes_of_a_summary_are_no_failure(kd, run, change):
    rewrite_json(run / "summary.json", change)
    code, _, err = kd("run", "--resume", "--out", run, "-q")
    assert code in (0, 2), err


def test_folders_that_are_no_seeds_are_left_out(kd, run):
    (run / "seed-x").mkdir()
    (run / "student.safetensors").rename(run / "seed-x" / "student.safetensors")
    code, _, err = kd("evaluate", run)
    assert code == 2
    assert "holds no student.safetensors" in err


def test_a_cached_teacher_whose_summary_lacks_its_time_is_told(kd, place, tmp_path, monkeypatch):
    monkeypatch.setenv("KDENGINE_CACHE", str(tmp_path / "own"))
    assert kd("run", "small.toml", "-q", "--set", "train.epochs=1", "--out", "one")[0] == 0
    (summary,) = (tmp_path / "own").glob("teachers/*/summary.json")
    for student in ({}, None, {"seconds": "long"}):
        summary.write_text(json.dumps({"student": student}))
        code, _, err = kd("run", "small.toml", "-q", "--set", "train.epochs=1", "--out", "two")
        assert code == 2, err
        assert "does not say how long" in err
        (place / "two" / "recipe.toml").unlink()
