from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import Queue
from pathlib import Path

import pytest
import torch

import kdengine
from kdengine import _files as files
from kdengine._locks import locked
from kdengine.api.processes import Processes
from kdengine.engine import layout, rundir
from kdengine.host import Host
from kdengine.recipe import fingerprint as fingerprint_module
from kdengine.recipe import teacher as teacher_module
from kdengine.recipe.data import Data, make_data
from kdengine.recipe.fingerprint import fingerprint
from kdengine.recipe.load import Source, load
from kdengine.recipe.plan import make_plan
from kdengine.recipe.teacher import Teacher, get_teacher, lock_of, teachers_folder
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


class Unknown(torch.utils.data.Dataset):
    """A data set of somebody's, with random crops and without a fingerprint."""

    classes = ("a", "b")

    def __init__(self, images: torch.Tensor, targets: list[int]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        left = int(torch.randint(0, 3, ()))
        return self.images[index, :, left : left + 8], self.targets[index]


def test_an_unknown_data_set_is_known_by_its_content(plan_of):
    plan, images, targets = plan_of(), torch.rand(6, 1, 10, 8), [0, 1] * 3

    def key_with(images, targets):
        train = Unknown(images, targets)
        return key(plan, Data(train, train, ["a", "b"], (1, 8, 8), torch.float32))

    changed = images.clone()
    changed[5, 0, 4, 4] += 1e-3
    before = torch.get_rng_state()
    found = [
        key_with(images, targets),
        key_with(images.clone(), list(targets)),
        key_with(changed, targets),
        key_with(images, [1, 1, *targets[2:]]),
        key_with(images.flip(0), targets),
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_a_large_unknown_data_set_is_sampled_and_its_targets_read_whole(monkeypatch):
    monkeypatch.setattr(fingerprint_module, "READ_WHOLE", 3)
    images, targets = torch.rand(9, 1, 10, 8), [0] * 9
    sampled, unread = images.clone(), images.clone()
    sampled[3, 0, 4, 4] += 1.0
    unread[4, 0, 4, 4] += 1.0
    prints = [fingerprint(Unknown(*each)) for each in ((images, targets), (unread, targets), (sampled, targets),
                                                       (images, [0] * 8 + [1]))]  # fmt: skip
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_the_test_set_counts_where_a_metric_on_it_changes_the_training(plan_of):
    for text, same in ((SMALL, True), (SMALL + "lr_schedule.use = 'plateau'", False)):
        plan = plan_of(text)
        data = make_data(plan)
        before = key(plan, data)
        data.test.tensors[0][0] += 1.0
        assert (key(plan, data) == before) is same


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("checkpoints", [True, False], ids=["with checkpoints", "cleaned"])
@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink], ids=["a bit flipped", "missing"])
def test_damaged_weights_in_the_cache_are_made_again_and_named(plan_of, cache, damage, checkpoints):
    first = teach(plan_of())
    path = only(cache) / layout.STUDENT
    whole = path.read_bytes()
    damage(path)
    if not checkpoints:
        shutil.rmtree(path.parent / layout.CHECKPOINTS)
    said: list[str] = []
    plan = plan_of()
    second = get_teacher(plan, make_data(plan), [], said.append)
    assert [str(path) in line and "made again" in line for line in said] == [True]
    assert path.read_bytes() == whole
    assert second is not None
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert teach(plan_of()).cached


def test_what_killed_runs_left_in_the_cache_is_swept(plan_of, cache):
    teach(plan_of())
    for place in (cache, only(cache)):
        (place / f".tmp-{files._HOST}-{os.getpid()}-0-left").mkdir()
    teach(plan_of())
    assert not list(cache.rglob(".tmp-*"))


def test_who_waits_for_a_teacher_tells_the_other_processes_again_and_again(plan_of, cache, monkeypatch, tmp_path):
    rounds, said = [], []

    class Two(Processes):
        def on_main(self, act):
            rounds.append(None)
            if len(rounds) == 3:
                other.close()
            return act()

    other, held = ExitStack(), ExitStack()
    with ThreadPoolExecutor(1) as pool:  # locks belong to threads
        folder = tmp_path / "teacher"
        pool.submit(other.enter_context, locked(lock_of(folder))).result()
        monkeypatch.setattr(teacher_module, "join", Two)
        monkeypatch.setattr(teacher_module, "ROUND_SECONDS", 0.0)
        monkeypatch.setattr(teacher_module, "POLL_SECONDS", 0.0)
        teacher_module._wait_for(folder, held, said.append)
    assert len(rounds) == 3
    assert [f"process {os.getpid()} on" in line for line in said] == [True]
    held.close()
    assert not lock_of(folder).exists()


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


PROCESSES = multiprocessing.get_context("spawn")  # what autograd has done in this process may forbid a fork


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
    answer = PROCESSES.Queue()  # which must outlive the start of the process
    process = start(text, answer)
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
