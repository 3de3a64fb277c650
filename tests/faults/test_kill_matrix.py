"""A training that is killed at any point goes on to the bits of one that was not."""

import random

import pytest

from tests.faults import commands
from tests.faults.judge import Lost, check_killed, published
from tests.faults.matrix import survive, survivors
from tests.faults.points import every_point, one_of_each_kind, points_at_calls, points_at_instants, points_twice
from tests.faults.reference import contents, undisturbed
from tests.faults.shim import Fault, Mode

SEED = 0


@pytest.fixture
def dice():
    return random.Random(SEED)


def test_the_trace_has_what_a_training_writes_with(reference):
    traced = {(call.name, call.path.rpartition("/")[2]) for call in reference.calls}
    assert {("write", "metrics.jsonl"), ("write", "state.json"), ("write", "student.safetensors")} <= traced
    assert {call.name for call in reference.calls} >= {"mkdir", "write", "fsync", "rename", "unlinkat", "rmdir"}
    written = sum(call.bytes for call in reference.calls if call.path.endswith("metrics.jsonl"))
    assert written == (reference.out / "metrics.jsonl").stat().st_size


def test_an_undisturbed_training_is_the_same_twice(launcher, reference, folder):
    ending = launcher.train(folder / "run")
    assert ending.finished
    assert contents(folder / "run") == contents(reference.out)
    assert [call.kind for call in ending.calls] == [call.kind for call in reference.calls]


def test_killed_at_every_kind_of_call(launcher, reference, folder, dice):
    points = one_of_each_kind(points_at_calls(reference), dice)
    assert {point.fault.mode for point in points} == {Mode.BEFORE, Mode.AFTER, Mode.TORN}
    lost = [text for text in survivors(launcher, reference, points, folder) if text]
    assert not lost, "\n".join(lost)


def test_killed_at_random_instants(launcher, reference, folder, dice):
    lost = [text for text in survivors(launcher, reference, points_at_instants(reference, 4, dice), folder) if text]
    assert not lost, "\n".join(lost)


def test_killed_while_the_resumed_training_cleans_up(launcher, reference, folder, dice):
    (point,) = points_twice(reference, 1, dice)
    survive(launcher, reference, point, folder / "point")


def test_killed_while_the_only_checkpoint_is_replaced_by_another_one_of_its_step(launcher, folder):
    reference = undisturbed(launcher, folder / "reference", keep=1, checkpoint_every=3)
    first, second, *_ = [call.number for call in reference.calls if published([call])]
    assert published(reference.calls[:second]) == [3, 3]
    points = [
        point
        for point in points_at_calls(reference)
        if first < point.fault.at <= second + 8 and point.fault.mode is Mode.BEFORE and point.call.name != "fsync"
    ]
    replacing = [point for point in points if "step" in point.call.path.rpartition("/")[2]]
    lost = [text for text in survivors(launcher, reference, replacing, folder / "points") if text]
    assert not lost, "\n".join(lost)


def test_a_call_that_does_not_come_is_an_error_of_the_harness(launcher, reference, folder):
    point = points_at_calls(reference)[-1]
    beyond = type(point)(Fault(Mode.BEFORE, len(reference.calls) + 1), point.call)
    with pytest.raises(RuntimeError, match="was not killed"):
        survive(launcher, reference, beyond, folder / "point")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoints/step-00000008/state.json", "damaged"),
        ("student.safetensors", "not whole"),
        ("metrics.jsonl", "not a beginning"),
    ],
)
def test_a_loss_is_told(launcher, reference, folder, name, said):
    assert launcher.train(folder / "run").finished
    check_killed(folder / "run", reference, reference.calls)
    file = folder / "run" / name
    file.write_bytes(b"?" + file.read_bytes()[:-1])
    with pytest.raises(Lost, match=said):
        check_killed(folder / "run", reference, reference.calls)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_killed_at_every_kind_of_call_and_at_instants(launcher, folder, dice, strategy):
    reference = undisturbed(launcher, folder / "reference", world=2, strategy=strategy)
    points = one_of_each_kind(points_at_calls(reference), dice) + points_at_instants(reference, 6, dice)
    assert {point.rank for point in points} == {0, 1}
    lost = [text for text in survivors(launcher, reference, points, folder / "points") if text]
    assert not lost, "\n".join(lost)


@pytest.mark.exhaustive
def test_the_whole_matrix(launcher, reference, folder):
    points = every_point(reference, SEED)
    assert len(points) >= 200
    lost = [text for text in survivors(launcher, reference, points, folder) if text]
    assert not lost, "\n".join(lost)


@pytest.fixture(scope="module")
def whole(launcher, tmp_path_factory):
    """The calls of an undisturbed `kdengine run`, and what it leaves."""
    folder = tmp_path_factory.mktemp("whole").resolve() / "whole"
    return commands.trace(launcher, folder), commands.left(folder / "work")


@pytest.mark.slow
def test_a_whole_command_killed_at_a_few_of_its_calls(launcher, whole, folder, dice):
    calls, expected = whole
    points = dice.sample(commands.distinct_points(calls, dice), 8)
    lost = [text for _, text in commands.survivors(launcher, expected, points, folder) if text]
    assert not lost, "\n".join(lost)


@pytest.mark.exhaustive
def test_a_whole_command_killed_at_every_distinct_call(launcher, whole, folder, dice):
    calls, expected = whole
    points = commands.distinct_points(calls, dice)
    assert {"cache.json", "seeds.json", "report.html", "summary.json", "run.lock"} <= {
        point.call.path.rpartition("/")[2] for point in points
    } | {point.call.second.rpartition("/")[2] for point in points}
    lost = [text for _, text in commands.survivors(launcher, expected, points, folder) if text]
    assert not lost, "\n".join(lost)
