"""One fit at a time in a run directory, and what is finished stays so when its checkpoints are gone."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import kdengine
from kdengine.engine import rundir
from tests.engine.common import engine, flat, items, mlp


def train(out, epochs=2, student=None, resume="auto", **options):
    student = student or mlp()
    trained = engine(student, out=out, metrics={"top1": "top1"}, seed=0, **options)
    result = trained.fit(
        kdengine.loader(items(), 8, seed=1), kdengine.loader(items(), 8, shuffle=False), epochs=epochs, resume=resume
    )
    return result, student


def elsewhere(act, *args):
    """Do something in another thread, which to a lock is another process."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act, *args).result()


class Second:
    """Tries to begin a second fit in the directory of the first, in the middle of a step of it."""

    kdengine_hook_version = 1

    def __init__(self, resume):
        self.resume = resume
        self.refused = None

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        if context.step == 3:
            with pytest.raises(kdengine.ConfigurationError) as error:
                elsewhere(train, context.fit.out, 2, None, self.resume)
            self.refused = str(error.value)


@pytest.mark.parametrize("resume", [None, "auto", True])
def test_a_second_fit_in_the_directory_is_refused_and_leaves_the_first_alone(tmp_path, resume):
    second = Second(resume)
    result, student = train(tmp_path / "run", plugins=[second])
    assert "is in use by process" in second.refused
    assert str(tmp_path / "run") in second.refused
    alone, same = train(tmp_path / "alone")
    assert torch.equal(flat(student), flat(same))
    for name in ("steps.jsonl", "student.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert result.metrics == alone.metrics
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_fit_that_failed_or_was_refused_leaves_no_lock(tmp_path):
    with pytest.raises(kdengine.ConfigurationError):
        train(tmp_path / "run", resume=True)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.fixture
def cleaned(tmp_path):
    """A finished run as ``kdengine clean`` leaves it, and what it was."""
    result, _ = train(tmp_path / "run", ema=0.5)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    return tmp_path / "run", result, before


@pytest.mark.parametrize("resume", ["auto", True])
def test_a_cleaned_run_is_still_finished(cleaned, resume):
    out, first, before = cleaned
    result, student = train(out, student=mlp(), resume=resume, ema=0.5)
    assert (result.metrics, result.best, result.steps, result.status) == (first.metrics, first.best, 8, "finished")
    assert [record["top1"] for record in result.history] == [record["top1"] for record in first.history]
    exported = rundir.read_student(out)
    assert all(torch.equal(value, exported[name]) for name, value in student.state_dict().items())
    assert {path: path.read_bytes() for path in out.glob("*.*")} == before
    assert not (out / "checkpoints").exists()


def test_a_cleaned_run_is_not_trained_longer_and_keeps_its_records(cleaned):
    out, _, before = cleaned
    with pytest.raises(kdengine.CheckpointError, match=r"finished with 2 epochs.*cannot go on to 3.*another directory"):
        train(out, epochs=3, ema=0.5)
    assert {path: path.read_bytes() for path in out.glob("*.*")} == before


def test_a_cleaned_run_of_another_student_is_told(cleaned):
    with pytest.raises(kdengine.CheckpointError, match="of another student"):
        train(cleaned[0], student=mlp(9))


@pytest.mark.parametrize("text", ['{"epochs": 2}', '{"epochs": "2"}', '{"student": 1, "epochs": 2, "status": 1}'])
def test_a_summary_that_says_nothing_is_damaged_and_nothing_is_emptied(cleaned, text):
    out, _, _ = cleaned
    (out / "summary.json").write_text(text)
    records = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(kdengine.CheckpointError, match=r"summary.json is damaged"):
        train(out)
    assert (out / "metrics.jsonl").read_bytes() == records


def test_checkpoints_that_are_all_damaged_do_not_undo_a_finished_run(tmp_path):
    first, _ = train(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        path.write_bytes(b"{}")
    records = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    result, _ = train(tmp_path / "run")
    assert result.metrics == first.metrics
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == records


def test_a_run_that_has_not_ended_begins_again_where_no_checkpoint_is(tmp_path):
    first, _ = train(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "summary.json").unlink()
    assert train(tmp_path / "run")[0].metrics == first.metrics
