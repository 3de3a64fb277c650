"""The jsonl logger: whole lines, exact after a resume."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from kdengine.api import RunInfo
from kdengine.loggers import jsonl
from kdengine.loggers.jsonl import Jsonl


def run(out, step=0):
    return RunInfo("student", out, 100, 10, step)


def read(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]


def write(logger, *steps):
    for step in steps:
        logger.log({"loss": step / 10}, step=step, kind="train")


def test_a_record_is_one_line_at_once(tmp_path):
    logger = Jsonl()
    logger.start(run(tmp_path / "new" / "folder"))
    logger.log({"epoch": 1, "loss": 0.5, "kd.soft": 0.25, "note": "größer"}, step=3, kind="train")
    logger.log({"top1": None, "step": 99}, step=4, kind="evaluate")
    assert read(tmp_path / "new" / "folder") == [
        {"kind": "train", "step": 3, "epoch": 1, "loss": 0.5, "kd.soft": 0.25, "note": "größer"},
        {"kind": "evaluate", "step": 4, "top1": None},
    ]


def test_what_json_has_no_number_for_reads_back_as_float(tmp_path):
    logger = Jsonl()
    logger.start(run(tmp_path))
    logger.log({"a": math.nan, "b": math.inf, "c": -math.inf}, step=0, kind="train")
    record = read(tmp_path)[0]
    assert math.isnan(float(record["a"]))
    assert (float(record["b"]), float(record["c"])) == (math.inf, -math.inf)


def test_numbers_of_other_libraries_become_numbers(tmp_path):
    logger = Jsonl()
    logger.start(run(tmp_path))
    logger.log({"a": torch.tensor(0.5), "b": np.float32(0.25), "c": [1]}, step=0, kind="train")
    assert read(tmp_path)[0] == {"kind": "train", "step": 0, "a": 0.5, "b": 0.25, "c": "[1]"}


def test_resume_cuts_off_what_came_after_the_checkpoint(tmp_path):
    first = Jsonl()
    first.start(run(tmp_path))
    write(first, 1, 2)
    state = json.loads(json.dumps(first.state_dict()))
    write(first, 3, 4)
    second = Jsonl()
    second.load_state_dict(state)
    second.start(run(tmp_path, step=2))
    write(second, 3, 5)
    second.finish("finished")
    assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 5]


def test_rollback_cuts_the_open_file(tmp_path):
    logger = Jsonl()
    logger.start(run(tmp_path))
    write(logger, 1)
    state = logger.state_dict()
    write(logger, 2, 3)
    logger.load_state_dict(state)
    write(logger, 2)
    assert [record["step"] for record in read(tmp_path)] == [1, 2]
    assert logger.state_dict() == {"bytes": (tmp_path / "metrics.jsonl").stat().st_size}


def test_a_fresh_fit_starts_an_empty_file(tmp_path):
    for _ in range(2):
        logger = Jsonl()
        logger.start(run(tmp_path))
        write(logger, 1)
        logger.finish("finished")
    assert len(read(tmp_path)) == 1


def test_resume_without_a_state_keeps_whole_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step"')
    logger = Jsonl()
    logger.start(run(tmp_path, step=1))
    write(logger, 2)
    assert [record["step"] for record in read(tmp_path)] == [1, 2]


def test_resume_without_a_state_drops_records_of_later_steps_and_what_follows_a_line_that_is_none(tmp_path):
    for rest in (b'{"step": 3}\n{"step": 4}\n', b'{"ste{"step": 2}\n', b"\xff\n"):
        (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n' + rest)
        logger = Jsonl()
        logger.start(run(tmp_path, step=2))
        write(logger, 3)
        assert [record["step"] for record in read(tmp_path)] == [1, 2, 3]


@contextmanager
def a_full_disk(size):
    """No file grows beyond so many bytes; what is warned of is collected."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield said
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("part", [0, 1, 5, 30])
def test_a_disk_that_is_full_for_a_while_costs_no_record_and_is_said_once(tmp_path, part):
    logger = Jsonl()
    logger.start(run(tmp_path))
    write(logger, 1)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with a_full_disk(len(whole) + part) as said:
        write(logger, 2, 3, 4)
    write(logger, 5)
    with a_full_disk(len(whole) + part) as again:
        write(logger, 6)
    logger.finish("finished")
    assert ["metrics.jsonl cannot be written (File too large)" in str(each.message) for each in said] == [True]
    assert again == []
    assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_resume_writes_what_found_no_room_before_the_checkpoint(tmp_path):
    logger = Jsonl()
    logger.start(run(tmp_path))
    write(logger, 1)
    with a_full_disk((tmp_path / "metrics.jsonl").stat().st_size + 3):
        write(logger, 2, 3)
        state = json.loads(json.dumps(logger.state_dict()))
        write(logger, 4)
    again = Jsonl()
    again.load_state_dict(state)
    again.start(run(tmp_path, step=3))
    write(again, 4)
    assert [record["step"] for record in read(tmp_path)] == [1, 2, 3, 4]


def test_a_rollback_forgets_what_found_no_room_after_the_checkpoint(tmp_path):
    logger = Jsonl()
    logger.start(run(tmp_path))
    write(logger, 1)
    state = logger.state_dict()
    with a_full_disk((tmp_path / "metrics.jsonl").stat().st_size):
        write(logger, 2)
    logger.load_state_dict(state)
    write(logger, 3)
    assert [record["step"] for record in read(tmp_path)] == [1, 3]


def test_records_that_find_no_room_to_the_end_are_counted(tmp_path):
    logger = Jsonl()
    logger.start(run(tmp_path))
    write(logger, 1)
    with a_full_disk((tmp_path / "metrics.jsonl").stat().st_size):
        write(logger, 2, 3)
        with pytest.raises(OSError, match="2 records found no room") as lost:
            logger.finish("finished")
    assert lost.value.filename == str(tmp_path / "metrics.jsonl")


def test_a_disk_that_has_no_room_for_the_file_when_the_fit_starts_gets_it_later(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = Jsonl()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.warns(UserWarning, match="No space left"):
            logger.start(run(tmp_path))
        write(logger, 1)
    write(logger, 2)
    assert [record["step"] for record in read(tmp_path)] == [1, 2]


def test_more_than_memory_should_hold_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MOST_UNWRITTEN", 60)
    logger = Jsonl()
    logger.start(run(tmp_path))
    with a_full_disk(0), pytest.raises(OSError, match="too large"):
        write(logger, 1, 2, 3)


def test_resume_survives_a_file_that_is_shorter_than_the_checkpoint_says(tmp_path):
    logger = Jsonl()
    logger.load_state_dict({"bytes": 1000})
    logger.start(run(tmp_path, step=1))
    write(logger, 2)
    assert [record["step"] for record in read(tmp_path)] == [2]


def test_a_logger_can_serve_one_fit_after_another(tmp_path):
    logger = Jsonl()
    logger.load_state_dict({"bytes": 0})
    for name in ("a", "b"):
        logger.start(run(tmp_path / name))
        write(logger, 1, 2)
        logger.finish("finished")
    assert len(read(tmp_path / "a")) == len(read(tmp_path / "b")) == 2


def test_without_a_run_directory_nothing_is_written():
    logger = Jsonl()
    logger.start(run(None))
    write(logger, 1)
    assert logger.state_dict() == {"bytes": 0}
    logger.finish("finished")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_process_leaves_every_record(tmp_path):
    code = """
import os, pathlib, signal, sys
from kdengine.api import RunInfo
from kdengine.loggers import jsonl
from kdengine.loggers.jsonl import Jsonl
logger = Jsonl()
logger.start(RunInfo("student", pathlib.Path(sys.argv[1]), 100, 10))
for step in range(50):
    logger.log({"loss": 0.5}, step=step, kind="train")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(read(tmp_path)) == 50
