"""``kdengine run`` under real signals: exit codes, the way to go on, and what is left behind."""

from __future__ import annotations

import signal

import pytest

from kdengine.engine import checkpoint

PLUGIN = """
import os, signal
import kdengine

kdengine_hook_version = 1
PHASE, NUMBER = "{phase}", {number}


def send(phase):
    if phase == PHASE:
        os.kill(os.getpid(), NUMBER)


send("start")


class Mark(kdengine.Logger):
    def start(self, run):
        self.name = run.name

    def log(self, record, *, step, kind):
        send(f"{{self.name}} {{kind}}")


@kdengine.hookimpl
def kdengine_loggers():
    return {{"mark": Mark}}


@kdengine.hookimpl
def kdengine_on_step_start(context):
    if context.step == 25:
        send("step")


@kdengine.hookimpl
def kdengine_on_fit_end(context):
    send("end")
"""
EXITS = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("start", signal.SIGTERM),
        pytest.param("teacher train", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("start", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("teacher train", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("teacher evaluate", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("step", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("step", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("end", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_run_that_can_go_on(place, process, monkeypatch, phase, number):
    monkeypatch.setenv("KDENGINE_CACHE", str(place / "cache"))
    monkeypatch.setenv("KDENGINE_BACKEND", "python")  # that cache is empty: nothing is to be compiled into it
    (place / "mark.py").write_text(PLUGIN.format(phase=phase, number=int(number)))
    recipe = (place / "small.toml").read_text() + 'plugins = ["mark.py"]\nloggers = ["mark"]\n'
    (place / "signalled.toml").write_text(recipe)
    done = process("run", "signalled.toml", "--out", "run", "--set", "train.log_every=5")
    assert (done.returncode, done.stderr.splitlines()[0]) == EXITS[number], done.stderr
    if phase == "start":
        assert not (place / "run").exists()
        return
    assert "kdengine run --resume --out run" in done.stderr
    folder = next((place / "cache" / "teachers").glob("mlp-*/")) if phase.startswith("teacher") else place / "run"
    assert checkpoint.find_latest(folder / "checkpoints", on_damaged=lambda *found: pytest.fail(str(found)))
    (place / "mark.py").write_text(PLUGIN.format(phase="none", number=0))
    assert process("run", "--resume", "--out", "run").returncode == 0
    assert process("run", "signalled.toml", "--out", "whole", "--set", "train.log_every=5").returncode == 0
    students = [(place / name / "student.safetensors").read_bytes() for name in ("run", "whole")]
    assert students[0] == students[1]
