"""A training of fifty steps is killed in each of them, twice in a row, and goes on to the bits of one that was not."""

import pytest

from tests.faults.reference import contents, undisturbed

STEPS, EPOCHS, ITEMS, WINDOW = 50, 10, 34, 2
"""Nine micro-batches make up an epoch of five steps; the last step has one micro-batch, and that one has two items."""

TRAINING = {"epochs": EPOCHS, "items": ITEMS, "bank": True, "precision": "bf16", "checkpoint_every": 2}


@pytest.fixture(scope="session")
def whole(launcher, tmp_path_factory):
    out = undisturbed(launcher, tmp_path_factory.mktemp("whole").resolve(), **TRAINING).out
    lines = (out / "steps.jsonl").read_bytes().count(b"\n")
    assert lines == STEPS
    return contents(out)


def micro_batches(step):
    """How many make up a step."""
    return 1 if step % (STEPS // EPOCHS) == STEPS // EPOCHS - 1 else WINDOW


def check(launcher, folder, whole, step, workers):
    """Kill in the first micro-batch of a step, resume, kill in its last one, resume."""
    run = folder / "run"
    for micro in (0, micro_batches(step) - 1):
        assert launcher.train(run, **TRAINING, workers=workers, deadly=(step, micro)).killed
    assert launcher.train(run, **TRAINING, workers=workers).finished
    ended = contents(run)
    for name in ("student.safetensors", "metrics.jsonl", "steps.jsonl", "summary.json"):
        assert ended[name] == whole[name], f"{name} after two kills in step {step}, {workers} workers"


@pytest.mark.parametrize("step", [1, 49])
def test_killed_twice_in_a_step_and_resumed_twice(launcher, folder, whole, step):
    check(launcher, folder, whole, step, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_killed_twice_in_every_step(launcher, folder, whole, workers):
    for step in range(STEPS):
        check(launcher, folder / str(step), whole, step, workers)
