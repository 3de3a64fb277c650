"""kdengine run and check."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def test_a_run_ends_with_a_table_and_the_path_of_its_report(kd):
    code, out, _ = kd("run", "small.toml", "--set", "baseline=true", "--set", "train.epochs=1")
    lines = out.splitlines()
    assert code == 0
    assert lines[-1] == "runs/small/report.html"
    assert Path(lines[-1]).is_file()
    for label in ("teacher", "student alone", "student distilled"):
        assert any(line.startswith(label) for line in lines), out
    assert "the student sees labels for 10" in out
    assert "(126 of 1,257)" in out


def test_runs_of_one_name_take_directories_of_their_own(kd):
    for expected in ("runs/small", "runs/small-2"):
        code, out, _ = kd("run", "small.toml", "-q", "--set", "train.epochs=1")
        assert code == 0
        assert out.splitlines()[-1] == f"{expected}/report.html"


def test_quiet_prints_the_outcome_only(kd):
    _, out, err = kd("run", "small.toml", "-q", "--set", "train.epochs=1")
    assert out.split()[0] == "top-1"
    assert not err


@pytest.mark.parametrize("seeds", [2, None])
def test_a_run_that_was_cut_off_while_its_teacher_trained_goes_on_with_its_seeds(kd, place, monkeypatch, seeds):
    """As a kill leaves it: the directory says what the run is to be, and nothing was trained."""
    given = () if seeds is None else ("--seeds", seeds)

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kdengine.recipe.run.get_teacher", cut_off)
        assert kd("run", "small.toml", "-q", *given, "--set", "train.epochs=1", "--out", "cut")[0] == 130
    assert not list(place.glob("cut/seed-*"))
    if seeds is None:
        code, _, err = kd("run", "--resume", "-q", "--out", "cut", "--seeds", 2)
        assert (code, "holds a run of one seed" in err) == (2, True)
    assert kd("run", "--resume", "-q", "--out", "cut")[0] == 0
    found = summary("cut")
    assert (found.get("seeds"), len(list(place.glob("cut/seed-*")))) == (([0, 1], 2) if seeds else (None, 0))


@pytest.mark.parametrize("text", ["{}", "[0, true]", "[0", '["0"]'])
def test_seeds_that_are_none_are_told(kd, place, text):
    (place / "cut").mkdir()
    (place / "cut" / "recipe.toml").write_text((place / "small.toml").read_text())
    (place / "cut" / "seeds.json").write_text(text)
    code, _, err = kd("run", "--resume", "--out", "cut")
    assert code == 2
    assert "seeds.json is damaged" in err


def test_seeds_give_mean_and_deviation(kd):
    code, out, _ = kd("run", "small.toml", "-q", "--seeds", 2, "--set", "train.epochs=1", "--out", "two")
    assert code == 0
    assert "±" in out
    assert "over seeds 0, 1" in out
    assert summary("two")["seeds"] == [0, 1]
    code, out, _ = kd("run", "--resume", "--out", "two")
    assert code == 0
    assert "already finished" in out


def test_a_used_out_is_refused(kd, finished):
    code, _, err = kd("run", "small.toml", "--out", finished)
    assert code == 2
    assert "already holds a run" in err
    assert "--resume" in err


def test_a_finished_run_says_so_and_leaves_its_files(kd, finished, place):
    shutil.copytree(finished, place / "done")
    before = (place / "done" / "student.safetensors").read_bytes()
    code, out, _ = kd("run", "--resume", "--out", "done")
    assert code == 0
    assert "already finished" in out
    assert (place / "done" / "student.safetensors").read_bytes() == before


def test_a_finished_run_goes_on_for_more_epochs(kd, finished, place):
    shutil.copytree(finished, place / "more")
    code, _, _ = kd("run", "--resume", "--out", "more", "--set", "train.epochs=2")
    assert code == 0
    kd("run", "small.toml", "-q", "--out", "straight")
    assert summary("more")["epochs"] == 2
    assert summary("more")["steps"] == summary("straight")["steps"]
    same = [(place / name / "student.safetensors").read_bytes() for name in ("more", "straight")]
    assert same[0] == same[1]


def test_resume_refuses_another_recipe_and_lists_what_differs(kd, finished, place):
    shutil.copytree(finished, place / "done")
    code, _, err = kd("run", "--resume", "--out", "done", "--set", "losses.kd.temperature=3.0", "--set", "train.seed=4")
    assert code == 2
    assert "losses.kd.temperature was 2.0, is 3.0" in err
    assert "train.seed was 0, is 4" in err


def test_resume_takes_the_newest_run_of_the_name(kd, finished, place):
    (place / "runs").mkdir()
    for number, name in enumerate(("small", "small-2", "small-other")):
        shutil.copytree(finished, place / "runs" / name)
        os.utime(place / "runs" / name / "recipe.toml", (number, number))
    _, out, _ = kd("run", "small.toml", "--resume", "--set", "train.epochs=1")
    assert "going on with runs/small-2" in out


def test_resume_without_anything_to_resume(kd):
    code, _, err = kd("run", "--resume", "--out", "nowhere")
    assert code == 2
    assert "nothing to resume" in err
    code, _, err = kd("run")
    assert code == 2
    assert "name a recipe" in err


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(kd, place):
    kd("run", "small.toml", "-q", "--out", "whole")
    shutil.copytree("whole", "cut")
    (place / "cut" / "summary.json").unlink()
    (place / "cut" / "student.safetensors").unlink()
    newest = sorted((place / "cut" / "checkpoints").iterdir())[-1]
    damaged = newest / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8] + b"overrun!")
    code, _, err = kd("run", "--resume", "--out", "cut", "-q")
    assert code == 0
    assert "damaged checkpoint, using the one before" in err
    assert newest.name in err
    same = [(place / name / "student.safetensors").read_bytes() for name in ("whole", "cut")]
    assert same[0] == same[1]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_the_same_bits(process, place, workers):
    changes = ["--set", "train.epochs=40", "--set", "train.checkpoint_every=7", "--set", f"data.workers={workers}"]
    assert process("run", "small.toml", "-q", "--out", "whole", *changes).returncode == 0
    command = [sys.executable, "-m", "kdengine", "run", "small.toml", "--out", "killed", *changes]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        limit = time.monotonic() + 90
        while not any((place / "killed").glob("checkpoints/step-*7")) and time.monotonic() < limit:
            assert run.poll() is None, "the run was over before it could be killed"
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert not (place / "killed" / "summary.json").exists()
    resumed = process("run", "--resume", "--out", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stdout
    assert resumed.stdout.splitlines()[-1] == "killed/report.html"
    same = [(place / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert same[0] == same[1]


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(process, place):
    command = [sys.executable, "-m", "kdengine", "run", "small.toml", "--set", "train.epochs=5000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        limit = time.monotonic() + 60
        while not any(place.glob("runs/small/checkpoints/step-*")) and time.monotonic() < limit:
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "kdengine run --resume --out runs/small" in err
    assert "Traceback" not in err


def test_a_full_disk_is_one_message(process):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # noqa: E731
    done = process("run", "small.toml", "--set", "student.hidden=[64]", "--out", "full", preexec_fn=limit)
    assert done.returncode == 2
    assert "file too large" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_an_out_that_cannot_be_made_is_one_message(kd, place):
    (place / "file").write_text("")
    for out in ("file", "file/below", "/proc/nowhere/run"):
        code, _, err = kd("run", "small.toml", "--out", out)
        assert code == 2, err
        assert out.split("/")[-1] in err or "file" in err
        assert "Traceback" not in err


def test_without_the_report_extra_the_run_directory_comes_last(kd, monkeypatch):
    from kdengine.cli import running

    monkeypatch.setattr(running, "find_spec", lambda name: None)
    _, out, _ = kd("run", "small.toml", "-q", "--set", "train.epochs=1")
    assert out.splitlines()[-1] == "runs/small"
    assert "pip install 'kdengine[report]'" in out


def test_check_estimates_and_writes_nothing(kd, place, monkeypatch):
    monkeypatch.setenv("KDENGINE_CACHE", str(place / "cache"))
    before = sorted(place.rglob("*"))
    code, out, _ = kd("check", "small.toml")
    assert code == 0
    assert "would be trained first" in out
    assert "1,257 items to train on (126 labelled), 540 to test on" in out
    student = next(line for line in out.splitlines() if line.startswith("student distilled"))
    assert f"{64 * 8 + 8 + 8 * 10 + 10:,}" in student
    assert student.rstrip().endswith("40")
    assert sorted(place.rglob("*")) == before


def test_the_estimate_counts_memory_banks(place):
    from kdengine.cli.planning import prepare
    from kdengine.recipe.estimate import estimate
    from kdengine.recipe.load import find

    without, with_banks = (
        estimate(prepare(find("small.toml"), overrides)).fits[-1].weights
        for overrides in ([], ["losses.crd={ feat_dim = 100, nce_k = 8 }"])
    )
    assert 0 < with_banks - without - 2 * 4 * 100 * (1257 + 1) < 2 * 4 * 100 * 11 + 100  # the rest are linear maps


def test_the_estimate_counts_what_backward_keeps(place):
    from kdengine.cli.planning import prepare
    from kdengine.recipe.estimate import estimate
    from kdengine.recipe.load import find

    small = estimate(prepare(find("small.toml"), ["data.batch_size=32"])).fits[-1]
    large = estimate(prepare(find("small.toml"), ["data.batch_size=64"])).fits[-1]
    assert large.activations == 2 * small.activations > 32 * 8 * 4
    weights = 4 * small.parameters
    assert small.gradients == weights
    assert 2 * weights <= small.optimizer < 2 * weights + 100  # Adam keeps two moments, and a step count per tensor
