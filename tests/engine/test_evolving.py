"""Teachers that change while the student trains: resumed exactly, the same in several processes as in one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.shards import whole
from kdengine.losses import CE, KD, Hint
from kdengine.teachers.ema import EMA
from kdengine.teachers.peer import Peer
from tests.engine.common import CLASSES, INPUTS, engine, flat, items, mlp
from tests.engine.several import device, in_processes
from tests.engine.test_resume import StopAt


def network(width, dropout=0.2):
    torch.manual_seed(width)
    head = nn.Dropout(dropout), nn.Linear(width, CLASSES)
    return nn.Sequential(nn.Linear(INPUTS, width), nn.BatchNorm1d(width), nn.ReLU(), *head)


SOURCES = {"ema": lambda: EMA(decay=0.7), "peer": lambda: Peer(network(12))}


def train(source, out=None, epochs=2, resume="auto", student=None, **options):
    student = student or network(8)
    defaults = {
        "seed": 1,
        "losses": {"kd": KD(temperature=kdengine.Cosine(4.0, 1.0)), "ce": CE(), "hint": Hint(student="2", teacher="2")},
        "weights": {"ce": 0.5},
        "optimizer": lambda named: torch.optim.AdamW([p for _, p in named], lr=1e-2),
        "lr_scheduler": lambda opt, steps: torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=steps),
        "metrics": {"top1": "top1", "agreement": "agreement"},
    }
    trained = engine(student, source, out=out, **{**defaults, **options})
    loader = kdengine.loader(items(), 7, seed=2)
    return trained, trained.fit(loader, kdengine.loader(items(), 16, shuffle=False), epochs=epochs, resume=resume)


def bits(trained):
    """Everything that has been learnt."""
    modules = [trained.student, *trained.source.modules()]
    return [torch.cat([flat(module), *(buffer.flatten() for buffer in module.buffers())]) for module in modules]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("at", [1, 3, 5, 6])
def test_interrupted_after_a_step_and_resumed_it_ends_with_the_same_bits(tmp_path, name, at):
    whole, expected = train(SOURCES[name](), tmp_path / "whole")
    for step in (at, at + 1):
        with pytest.raises(KeyboardInterrupt):
            train(SOURCES[name](), tmp_path / "cut", checkpoint_every=1, plugins=[StopAt(step)])
    resumed, result = train(SOURCES[name](), tmp_path / "cut", checkpoint_every=1)
    assert all(torch.equal(a, b) for a, b in zip(bits(whole), bits(resumed), strict=True))
    assert (result.metrics, result.history) == (expected.metrics, expected.history)


SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import kdengine
from tests.engine.test_evolving import SOURCES, train

out, name, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])

class Kill:
    kdengine_hook_version = 1
    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        if context.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

train(SOURCES[name](), out, epochs=3, plugins=[Kill()], checkpoint_every=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_killed_in_the_middle_of_an_epoch_and_resumed_it_ends_with_the_same_bits(tmp_path, name):
    def run(out, kill_at=-1):
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path / out), name, str(kill_at)]
        return subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode

    assert run("whole") == 0
    assert run("killed", kill_at=7) == -signal.SIGKILL
    assert run("killed") == 0
    for file in ("student.safetensors", "metrics.jsonl", "steps.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


@pytest.mark.parametrize("name", SOURCES)
def test_more_epochs_go_on_with_the_teacher_as_it_was(tmp_path, name):
    options = {"lr_scheduler": None, "losses": {"kd": KD(), "ce": CE()}}
    whole, expected = train(SOURCES[name](), epochs=3, **options)
    train(SOURCES[name](), tmp_path / "run", epochs=1, **options)
    resumed, result = train(SOURCES[name](), tmp_path / "run", epochs=3, **options)
    assert result.history == expected.history
    assert all(torch.equal(a, b) for a, b in zip(bits(whole), bits(resumed), strict=True))


@pytest.mark.parametrize("name", SOURCES)
def test_a_checkpoint_with_another_kind_of_teacher_is_refused(tmp_path, name):
    losses = {"kd": KD(), "ce": CE()}
    train(SOURCES[name](), tmp_path / "run", epochs=1, losses=losses)
    with pytest.raises(kdengine.CheckpointError, match=r"evolving teacher was .*, is None"):
        train(mlp(32), tmp_path / "run", losses=losses)


class Poison:
    """Makes one step's inputs NaN, and keeps what has been learnt after every step."""

    kdengine_hook_version = 1

    def __init__(self, step):
        self.step, self.states = step, []

    @kdengine.hookimpl
    def kdengine_on_batch(self, context):
        if context.step == self.step:
            context.batch.inputs = torch.full_like(context.batch.inputs, float("nan"))

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        self.states.append(bits(self.trained))


@pytest.mark.parametrize("name", SOURCES)
def test_a_rollback_takes_the_teacher_back_as_well(tmp_path, name):
    poison = Poison(6)
    options = {"out": tmp_path / "run", "seed": 1, "losses": {"kd": KD(), "ce": CE()}, "weights": {}}
    poison.trained = engine(mlp(), SOURCES[name](), plugins=[poison], nonfinite="rollback", **options)
    poison.trained.fit(kdengine.loader(items(), 8), epochs=2)
    fourth, seventh = poison.states[3], poison.states[6]  # a checkpoint was written after the fourth step
    assert torch.equal(fourth[0], seventh[0])
    state = poison.trained.source.state_dict()
    assert state["updates"] == 6 if name == "ema" else torch.equal(fourth[1], seventh[1])


class Plain(nn.Module):
    """Not a container, so that FSDP2 shards it as a whole; without statistics, which processes gather by themselves."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(width)
        self.hidden, self.head = nn.Linear(INPUTS, width), nn.Linear(width, CLASSES)

    def forward(self, inputs):
        return self.head(self.hidden(inputs).relu())


PLAIN = {**SOURCES, "peer": lambda: Peer(Plain(12))}


def course(strategy, name, out=None, stop=None, **options):
    plugins = [] if stop is None else [StopAt(stop)]
    try:
        trained, result = train(
            PLAIN[name](), out, epochs=3, device=device(), strategy=strategy, accumulate=2, plugins=plugins,
            optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.05), checkpoint_every=1, clip=1.0,
            student=Plain(8), losses={"kd": KD(2.0), "ce": CE(), "hint": Hint(student="hidden", teacher="hidden")},
            **options,
        )  # fmt: skip
    except KeyboardInterrupt:
        return None
    modules = [trained.student, *trained.source.modules()]
    parts = [whole(p).detach().flatten().cpu() for module in modules for p in module.parameters()]
    return torch.cat(parts).tolist(), result.history


def courses(strategy):
    return {name: course(strategy, name) for name in SOURCES}


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_follow_the_course_of_one(strategy):
    alone = courses("ddp")
    for found in in_processes(2, courses, strategy):
        for name, (weights, history) in found.items():
            assert torch.allclose(torch.tensor(weights), torch.tensor(alone[name][0]), rtol=0, atol=1e-6), name
            assert [line["top1"] for line in history] == [line["top1"] for line in alone[name][1]]


def left_and_gone_on_with(strategy, folder):
    for name in SOURCES:
        undisturbed = course(strategy, name, folder / name)
        for stop in (2, 3, None):
            again = course(strategy, name, folder / f"{name} cut", stop)
        assert again == undisturbed, name
    return True


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_that_go_on_end_with_the_same_bits(tmp_path, strategy):
    assert in_processes(2, left_and_gone_on_with, strategy, tmp_path) == [True, True]
