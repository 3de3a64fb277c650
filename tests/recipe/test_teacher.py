from __future__ import annotations

import json
import multiprocessing
import sys
import time
from multiprocessing import Queue
from pathlib import Path

import pytest
import torch

import kdengine
from kdengine.engine import layout, rundir
from kdengine.host import Host
from kdengine.recipe.data import make_data
from kdengine.recipe.load import Source, load
from kdengine.recipe.plan import make_plan
from kdengine.recipe.teacher import Teacher, get_teacher, teachers_folder
from kdengine.recipe.teacher import key as key_of

from .conftest import SMALL


def teach(plan) -> Teacher:
    teacher = get_teacher(plan, make_data(plan), [])
    assert teacher is not None
    return teacher


def weights(teacher: Teacher) -> list[torch.Tensor]:
    return [value.clone() for module in teacher.modules for value in module.state_dict().values()]


def key(plan, data):
    return key_of(plan, data, plan.teacher.models[0])


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / layout.RECORDS).read_text().splitlines()]


def only(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def test_a_teacher_is_trained_once_and_taken_from_the_cache_after(plan_of, cache):
    first = teach(plan_of())
    folder = only(cache)
    assert folder.name.startswith("mlp-")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    logged = records(folder)
    second = teach(plan_of())
    assert (first.cached, second.cached) == (False, True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert records(folder) == logged
    assert second.seconds == first.seconds > 0
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_the_teacher_sees_every_label_and_learns_something(plan_of, cache):
    teach(plan_of(SMALL, "teacher.train.epochs=5"))
    assert rundir.read_summary(only(cache))["student"]["metrics"]["top1"] > 0.5


class Plugin:
    kdengine_hook_version = 1
    kdengine_version = "1"

    @kdengine.hookimpl
    def kdengine_on_fit_start(self, context):
        pass


@pytest.mark.parametrize(
    "override",
    [
        "teacher.hidden=[33]",
        "teacher.train.epochs=3",
        "teacher.train.lr=0.02",
        "teacher.train.labelled=0.5",
        "teacher.train.batch_size=100",
        "teacher.train.label_smoothing=0.1",
        "teacher.train.seed=1",
        "teacher.train.optimizer.use=sgd",
        "teacher.train.lr_schedule.use=cosine",
        "data.test_share=0.5",
        "data.batch_size=100",
        "data.transforms=['to_tensor']",
        "optimizer.betas=[0.8, 0.9]",
        "lr_schedule.use=cosine",
        "batch_transforms.mixup.alpha=0.2",
        "train.precision=bf16",
    ],
)
def test_whatever_determines_the_teacher_changes_its_key(plan_of, override):
    plan, changed = plan_of(), plan_of(SMALL, override)
    assert key(plan, make_data(plan)) != key(changed, make_data(changed))


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=5",
        "train.epochs=9",
        "data.labelled=0.5",
        "data.workers=2",
        "student.hidden=[9]",
        "losses.kd.temperature=3.0",
        "name=other",
        "train.log_every=1",
        "baseline=false",
        "evaluate.batch_size=10",
    ],
)
def test_what_concerns_the_student_alone_does_not_change_it(plan_of, override):
    plan, changed = plan_of(), plan_of(SMALL, override)
    assert key(plan, make_data(plan)) == key(changed, make_data(changed))


def test_content_of_the_data_threads_and_plugins_change_the_key(plan_of):
    plan = plan_of()
    data = make_data(plan)
    found = {key(plan, data)}
    data.train.tensors[0][0, 0, 0, 0] += 1.0
    found.add(key(plan, data))
    torch.set_num_threads(2)
    found.add(key(plan, data))
    found.add(key(plan_of(plugins=[Plugin()]), data))
    assert len(found) == 4


def test_a_teacher_with_a_checkpoint_leaves_the_cache_alone(plan_of, cache, tmp_path):
    trained = teach(plan_of())
    torch.save(trained.modules[0].state_dict(), tmp_path / "teacher.pth")
    text = SMALL.replace("train = { epochs = 2, lr = 0.01 }", f"checkpoint = '{tmp_path / 'teacher.pth'}'")
    kept = sorted(cache.rglob("*"))
    loaded = teach(plan_of(text))
    assert (loaded.cached, loaded.seconds) == (False, None)
    assert all(torch.equal(a, b) for a, b in zip(weights(trained), weights(loaded), strict=True))
    assert sorted(cache.rglob("*")) == kept


def test_without_a_teacher_there_is_none(plan_of):
    text = "\n".join(line for line in SMALL.splitlines() if not line.startswith(("teacher", "losses.kd", "evaluate")))
    plan = plan_of(text)
    assert get_teacher(plan, make_data(plan), []) is None


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("KDENGINE_CACHE", str(tmp_path / "a"))
    assert teachers_folder() == tmp_path / "a" / "teachers"
    monkeypatch.delenv("KDENGINE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert teachers_folder() == tmp_path / "b" / "kdengine" / "teachers"


PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def get_in_process(text: str, answer: Queue) -> None:
    torch.set_num_threads(1)
    source = Source("test.toml", text, Path("recipes"))
    answer.put(teach(make_plan(load(source), Host(autoload=False), source)).cached)


def start(text: str, answer: Queue):
    process = PROCESSES.Process(target=get_in_process, args=(text, answer))
    process.start()
    return process


def test_two_processes_at_once_train_it_once(cache):
    text = SMALL.replace("epochs = 2, lr", "epochs = 30, lr")
    answer = PROCESSES.Queue()
    both = [start(text, answer) for _ in range(2)]
    assert sorted(answer.get(timeout=120) for _ in both) == [False, True]
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    evaluations = [record["epoch"] for record in records(only(cache)) if record["kind"] == "evaluate"]
    assert evaluations == list(range(1, 31))


def test_training_that_was_killed_goes_on_to_the_same_weights(tmp_path, cache, plan_of):
    text = SMALL.replace("epochs = 2, lr", "epochs = 30, lr")
    process = start(text, PROCESSES.Queue())
    deadline = time.monotonic() + 60
    while not list(cache.glob("*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    folder = only(cache)
    reached = max(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoints/step-*"))
    assert 0 < reached < 150
    assert rundir.read_summary(folder) is None
    resumed = teach(plan_of(text))
    assert not resumed.cached
    evaluations = [record["epoch"] for record in records(folder) if record["kind"] == "evaluate"]
    assert evaluations == list(range(1, 31))
    assert rundir.read_summary(folder)["steps"] == 150

    folder.rename(tmp_path / "elsewhere")
    undisturbed = teach(plan_of(text))
    assert not undisturbed.cached
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(undisturbed), strict=True))
