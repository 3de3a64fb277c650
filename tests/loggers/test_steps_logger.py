"""Loggers of every step, with and without a run directory."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import kdengine
from kdengine.api import RunInfo
from kdengine.loggers.steps import Steps
from tests.engine.common import engine, items


class Collect(kdengine.Logger):
    steps: ClassVar[bool] = True

    def __init__(self):
        self.seen = []

    def log(self, record, *, step, kind):
        if kind == "step":
            self.seen.append((step, record))


def test_a_logger_of_steps_gets_each_of_them_without_a_run_directory_too(tmp_path):
    loggers = Collect(), Collect()
    for logger, out in zip(loggers, (None, tmp_path / "run"), strict=True):
        engine(seed=1, loggers=[logger], out=out).fit(kdengine.loader(items(), 8, seed=2), epochs=2)
    assert loggers[0].seen == loggers[1].seen
    assert [step for step, _ in loggers[0].seen] == list(range(1, 9))
    assert [list(record) for _, record in loggers[0].seen] == [["batch", "loss", "kd", "ce", "lr"]] * 8
    lines = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [{"step": step, **record} for step, record in loggers[1].seen]


def test_numbers_that_json_does_not_have_are_told_by_name(tmp_path):
    logger = Steps()
    logger.start(RunInfo("student", tmp_path, 10, 1, 0))
    logger.log({"batch": "00", "loss": math.inf, "kd": math.nan}, step=1, kind="step")
    logger.log({"loss": 1.0}, step=1, kind="train")
    logger.finish("finished")
    assert json.loads((tmp_path / "steps.jsonl").read_text()) == {
        "step": 1,
        "batch": "00",
        "loss": "Infinity",
        "kd": "NaN",
    }
