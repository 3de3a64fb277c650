"""What is done with finished runs."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import safetensors.torch
import torch
from torch import nn

import kdengine
from kdengine._locks import locked
from kdengine.losses import CE
from kdengine.ops import sources


@pytest.fixture
def run(finished, place):
    return shutil.copytree(finished, place / "runs" / "small")


def test_evaluate_finds_the_metrics_of_the_run(kd, run):
    stored = json.loads((run / "summary.json").read_text())["student"]["metrics"]["top1"]
    code, out, _ = kd("evaluate", run, "--json")
    assert code == 0
    assert json.loads(out)["top1"] == pytest.approx(stored)
    out = kd("evaluate", run)[1]
    assert f"{100 * stored:.1f}" in out
    assert "agreement" in out.splitlines()[-1]


def test_evaluate_on_other_data(kd, run):
    assert "on 180 test items" in kd("evaluate", run, "--set", "data.test_share=0.1")[1]


def test_an_unfinished_run_cannot_be_evaluated(kd, run):
    for name in ("student.safetensors", "summary.json"):
        (run / name).unlink()
    code, _, err = kd("evaluate", run)
    assert code == 2
    assert "not finished" in err


@pytest.fixture
def scripted(place):
    """The run directory of an engine that a script has made: it holds no recipe."""
    engine = kdengine.Engine(
        nn.Linear(2, 3),
        losses=[CE()],
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
        loggers=[],
        out=place / "scripted",
        seed=0,
    )
    engine.fit([(torch.randn(4, 2), torch.arange(4) % 3)] * 2, epochs=1)
    return place / "scripted"


@pytest.mark.parametrize("name", ["student.safetensors", "student.pth"])
def test_the_student_of_a_scripts_run_is_exported(kd, scripted, name):
    code, _, err = kd("export", scripted, name)
    assert code == 0, err
    found = safetensors.torch.load_file(name) if name.endswith("tensors") else torch.load(name, weights_only=True)
    expected = kdengine.load_run(scripted).student()
    assert list(found) == list(expected) == ["bias", "weight"]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["best.safetensors", "best.pth"])
def test_the_best_student_is_exported_where_the_last_is_not_the_best(kd, place, name):
    scores = iter([0.9, 0.1])
    kdengine.Engine(
        nn.Linear(2, 3),
        losses=[CE()],
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
        loggers=[],
        out=place / "two",
    ).fit([(torch.randn(4, 2), torch.arange(4) % 3)], lambda student: {"score": next(scores)}, epochs=2)
    code, _, err = kd("export", place / "two", name, "--best")
    assert code == 0, err
    found = safetensors.torch.load_file(name) if name.endswith("tensors") else torch.load(name, weights_only=True)
    run = kdengine.load_run(place / "two")
    assert torch.equal(found["weight"], run.student(best=True)["weight"])
    assert not torch.equal(found["weight"], run.student()["weight"])
    shutil.rmtree(place / "two" / "checkpoints")
    code, _, err = kd("export", place / "two", name, "--best")
    assert code == 2
    assert "epoch 1" in err
    assert "is gone" in err


def test_the_best_student_is_evaluated_where_the_last_is_not_the_best(kd, run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(record for record in records if record["kind"] == "evaluate")
    summary = json.loads((run / "summary.json").read_text())
    summary["best"] = {"metric": "top1", "value": first["top1"], "step": first["step"], "epoch": 1}
    (run / "summary.json").write_text(json.dumps(summary))
    code, out, err = kd("evaluate", run, "--best", "--json")
    assert code == 0, err
    assert json.loads(out)["top1"] == pytest.approx(first["top1"], rel=1e-6)


def test_what_needs_a_recipe_says_what_a_script_does_instead(kd, scripted):
    code, _, err = kd("evaluate", scripted)
    assert code == 2
    assert "written by a script" in err
    assert "load_run" in err


def test_the_checkpoints_of_a_scripts_run_are_removed(kd, scripted):
    assert kd("clean", scripted, "--yes")[0] == 0
    assert not (scripted / "checkpoints").exists()
    assert (scripted / "student.safetensors").exists()


def test_a_student_that_is_missing_is_written_again_by_the_command_that_is_named(kd, run):
    expected = safetensors.torch.load_file(run / "student.safetensors")
    (run / "student.safetensors").unlink()
    for command in (["evaluate", run], ["export", run, "x.pth"]):
        code, _, err = kd(*command)
        assert code == 2
        assert f"kdengine run --resume --out {run}" in err
    assert "nothing to remove" in kd("clean", run, "--yes")[1], "its checkpoints are all that is left"
    code, _, err = kd("run", "--resume", "--out", run, "-q")
    assert code == 0, err
    found = safetensors.torch.load_file(run / "student.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert kd("evaluate", run)[0] == 0


def test_a_student_that_nothing_can_bring_back_is_told_as_such_by_every_command(kd, run):
    (run / "student.safetensors").unlink()
    shutil.rmtree(run / "checkpoints")
    for command in (["evaluate", run], ["export", run, "x.pth"], ["run", "--resume", "--out", run]):
        code, _, err = kd(*command)
        assert code == 2
        assert "into another directory" in err


def test_a_seed_without_its_student_is_not_left_out_of_the_mean(kd, run, place):
    seeds = place / "seeds"
    for seed in (0, 1):
        shutil.copytree(run, seeds / f"seed-{seed}")
    shutil.copy(run / "recipe.toml", seeds)
    (seeds / "seed-1" / "student.safetensors").unlink()
    code, _, err = kd("evaluate", seeds)
    assert code == 2
    assert "seed-1 is finished but holds no student.safetensors" in err


def test_report_of_one_run_and_of_several(kd, run, place):
    assert kd("report", run)[1].strip() == f"{run}/report.html"
    other = shutil.copytree(run, place / "other")
    assert kd("report", run, other)[1].strip() == "report.html"
    assert (place / "report.html").is_file()
    assert kd("report", run, other, "--out", "both.html")[1].strip() == "both.html"


@pytest.mark.parametrize("name", ["student.safetensors", "student.pth", "student.pt"])
def test_export_writes_the_student(kd, run, place, name):
    assert kd("export", run, name)[0] == 0
    expected = safetensors.torch.load_file(run / "student.safetensors")
    found = safetensors.torch.load_file(name) if name.endswith("tensors") else torch.load(name, weights_only=True)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_export_refuses_other_formats(kd, run):
    code, _, err = kd("export", run, "student.onnx")
    assert code == 2
    assert ".safetensors" in err


def test_clean_removes_checkpoints_of_finished_runs_only(kd, run, place):
    unfinished = shutil.copytree(run, place / "runs" / "small-2")
    (unfinished / "summary.json").unlink()
    code, out, _ = kd("clean", "--yes")
    assert code == 0
    assert "runs/small/checkpoints" in out
    assert not (run / "checkpoints").exists()
    assert (run / "student.safetensors").exists()
    assert (unfinished / "checkpoints").exists()
    code, _, err = kd("clean", unfinished, "--yes")
    assert code == 2
    assert "not finished" in err
    assert "nothing to remove" in kd("clean", run)[1]


def test_clean_leaves_a_damaged_run_alone_and_goes_on(kd, run, place):
    damaged = run.with_name("a-damaged")
    shutil.copytree(run, damaged)
    (damaged / "summary.json").write_text("{")
    code, out, _ = kd("clean", "--yes")
    assert code == 0
    assert "left alone" in out
    assert not (run / "checkpoints").exists()


def test_clean_asks_first(kd, run, monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    code, out, err = kd("clean", run)
    assert code == 1
    assert "MB" in out
    assert "nothing was changed" in err
    assert (run / "checkpoints").exists()


def test_clean_leaves_what_is_no_run_alone(kd, place):
    (place / "thesis" / "checkpoints").mkdir(parents=True)
    code, _, err = kd("clean", "thesis", "--yes")
    assert code == 2
    assert "no run directory" in err
    assert (place / "thesis" / "checkpoints").exists()


def test_clean_cache_removes_teachers_and_libraries_and_nothing_else(kd, run, place, monkeypatch, teacher_cache):
    shutil.copytree(teacher_cache, place / "cache")
    monkeypatch.setenv("KDENGINE_CACHE", str(place / "cache"))
    monkeypatch.delenv("KDENGINE_LIBRARIES")
    (place / "cache" / "teachers" / "letters").mkdir()
    (place / "cache" / "libraries" / "cpu-of-other-sources").mkdir(parents=True)
    (place / "cache" / "libraries" / "cpu-of-other-sources" / sources.CPU.file).write_bytes(b"")
    (place / "cache" / "libraries" / "cpu-notes").mkdir()
    assert kd("clean", "--cache", "--yes")[0] == 0
    assert [path.name for path in (place / "cache" / "teachers").iterdir()] == ["letters"]
    assert [path.name for path in (place / "cache" / "libraries").iterdir()] == ["cpu-notes"]


def lock_elsewhere(path):
    """Hold a lock in another thread, which to it is another process; what it returns lets go."""
    pool, held = ThreadPoolExecutor(1), ExitStack()
    pool.submit(held.enter_context, locked(path)).result()
    return lambda: (pool.submit(held.close).result(), pool.shutdown())


def test_clean_leaves_a_run_that_is_in_use_alone(kd, run, place):
    other = shutil.copytree(run, place / "runs" / "small-2")
    let_go = lock_elsewhere(run / "run.lock")
    code, out, _ = kd("clean", "--yes")
    assert code == 0
    assert "left alone: the run directory runs/small is in use by process" in out
    assert (run / "checkpoints").exists()
    assert not (other / "checkpoints").exists()
    let_go()
    assert kd("clean", "--yes")[0] == 0
    assert not (run / "checkpoints").exists()


def test_clean_keeps_the_checkpoints_of_a_run_that_is_being_made_longer(kd, run):
    recipe = run / "recipe.toml"
    short = recipe.read_text()
    recipe.write_text(short.replace("epochs = 1\nseed", "epochs = 3\nseed"))
    assert recipe.read_text() != short
    assert "nothing to remove" in kd("clean", run, "--yes")[1]
    recipe.write_text(short)
    later = sorted((run / "checkpoints").iterdir())[-1]
    shutil.copytree(later, later.with_name("step-00009999"))
    assert "nothing to remove" in kd("clean", run, "--yes")[1]
    assert (run / "checkpoints").exists()


def test_a_cleaned_run_is_finished_and_is_not_made_longer(kd, run):
    assert kd("clean", run, "--yes")[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "already finished" in kd("run", "--resume", "--out", run)[1]
    code, _, err = kd("run", "--resume", "--out", run, "--set", "train.epochs=2")
    assert code == 2
    assert "cannot go on to 2" in err
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path for path in before if after.get(path) != before[path]} <= {run / "report.html"}


def test_clean_of_the_cache_leaves_a_teacher_that_is_in_use_alone(kd, run, place, monkeypatch, teacher_cache):
    shutil.copytree(teacher_cache, place / "cache")
    monkeypatch.setenv("KDENGINE_CACHE", str(place / "cache"))
    folder = next(path for path in (place / "cache" / "teachers").iterdir() if path.is_dir())
    let_go = lock_elsewhere(folder.parent / f"{folder.name}.lock")
    code, out, _ = kd("clean", "--cache", "--yes")
    assert code == 0
    assert f"left alone: {folder} is in use by process" in out
    assert (folder / "student.safetensors").exists()
    let_go()


def test_a_second_run_in_the_directory_is_refused(kd, run, place):
    let_go = lock_elsewhere(run / "run.lock")
    code, _, err = kd("run", "--resume", "--out", run, "--set", "train.epochs=2")
    assert code == 2
    assert "in use by process" in err
    let_go()
