"""What the logger writes, read back by TensorBoard itself."""

import inspect
import json
import math

import kdengine_tensorboard
import pytest
from kdengine_tensorboard.logger import TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdengine.api import ConfigurationError, RunInfo


def run(out, step=0, name="student"):
    return RunInfo(name, out, 100, 10, step)


def read(folder):
    """Every scalar as {tag: [(step, value), ...]}."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def write(logger, *steps):
    for step in steps:
        logger.log({"loss": step / 2}, step=step, kind="train")


def steps(folder):
    return [step for step, _ in read(folder)["train/loss"]]


def test_numbers_become_scalars_and_nothing_else_does(tmp_path):
    logger = TensorBoard()
    logger.start(run(tmp_path))
    logger.log({"epoch": 1, "loss": 0.5, "kd.soft": 0.25, "phase": "x", "done": True}, step=3, kind="train")
    logger.log({"top1": 0.75, "agreement": None}, step=4, kind="evaluate")
    logger.finish("finished")
    assert read(tmp_path / "tensorboard" / "student") == {
        "train/epoch": [(3, 1.0)],
        "train/loss": [(3, 0.5)],
        "train/kd.soft": [(3, 0.25)],
        "evaluate/top1": [(4, 0.75)],
    }


def test_non_finite_values_are_kept(tmp_path):
    logger = TensorBoard()
    logger.start(run(tmp_path))
    logger.log({"loss": math.nan}, step=1, kind="train")
    logger.finish("failed")
    assert math.isnan(read(tmp_path / "tensorboard" / "student")["train/loss"][0][1])


def test_resume_hides_what_came_after_the_checkpoint(tmp_path):
    first = TensorBoard()
    first.start(run(tmp_path))
    write(first, 1, 2)
    state = json.loads(json.dumps(first.state_dict()))
    write(first, 3, 4, 5)
    first.finish("failed")
    second = TensorBoard()
    second.load_state_dict(state)
    second.start(run(tmp_path, step=2))
    write(second, 3, 6)
    second.finish("finished")
    assert steps(tmp_path / "tensorboard" / "student") == [1, 2, 3, 6]


def test_resume_without_a_state_goes_by_the_step(tmp_path):
    first, second = TensorBoard(), TensorBoard()
    first.start(run(tmp_path))
    write(first, 1, 2, 3)
    first.finish("failed")
    second.start(run(tmp_path, step=2))
    write(second, 3)
    second.finish("finished")
    assert steps(tmp_path / "tensorboard" / "student") == [1, 2, 3]


def test_rollback_hides_what_came_after_the_checkpoint(tmp_path):
    logger = TensorBoard()
    logger.start(run(tmp_path))
    write(logger, 1)
    state = logger.state_dict()
    write(logger, 2, 3)
    logger.load_state_dict(state)
    write(logger, 2)
    logger.finish("finished")
    assert steps(tmp_path / "tensorboard" / "student") == [1, 2]


def test_a_fresh_fit_hides_an_earlier_one(tmp_path):
    for last in (5, 2):
        logger = TensorBoard()
        logger.start(run(tmp_path))
        write(logger, *range(last))
        logger.finish("finished")
    assert steps(tmp_path / "tensorboard" / "student") == [0, 1]


def test_fits_are_kept_apart_also_on_one_logger(tmp_path):
    logger = TensorBoard(directory="events")
    for name in ("baseline", "student"):
        logger.start(run(tmp_path, name=name))
        write(logger, 1)
        logger.finish("finished")
    assert steps(tmp_path / "events" / "baseline") == steps(tmp_path / "events" / "student") == [1]


def test_a_checkpoint_finds_its_events_on_the_disk(tmp_path):
    logger = TensorBoard()
    logger.start(run(tmp_path))
    write(logger, 1, 2)
    assert logger.state_dict() == {"last": 2}
    assert steps(tmp_path / "tensorboard" / "student") == [1, 2]
    logger.finish("finished")


def test_without_a_run_directory_the_folder_must_be_absolute(tmp_path):
    with pytest.raises(ConfigurationError, match="absolute directory"):
        TensorBoard().start(run(None))
    logger = TensorBoard(directory=str(tmp_path))
    logger.start(run(None))
    write(logger, 1)
    logger.finish("finished")
    assert steps(tmp_path / "student") == [1]


def test_the_plugin_offers_the_logger_and_documents_its_arguments():
    assert kdengine_tensorboard.kdengine_hook_version == 1
    assert kdengine_tensorboard.kdengine_loggers() == {"tensorboard": f"{TensorBoard.__module__}:TensorBoard"}
    for argument in inspect.signature(TensorBoard).parameters:
        assert f"    {argument}: " in inspect.getdoc(TensorBoard)
