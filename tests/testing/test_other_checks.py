"""The kit's checks of schedules, loggers and plugins."""

import math
import sys
from types import ModuleType

import pytest

import kdengine
from kdengine.api import Logger, Metric, Schedule
from kdengine.losses import LogitMSE
from kdengine.schedules import Constant, Cosine, Linear, OnMetric, Piecewise, Step, WarmUp
from kdengine.testing import HookRecorder, check_logger, check_plugin, check_schedule, tiny_run


@pytest.mark.parametrize(
    ("schedule", "arguments"),
    [
        (Constant, {"value": 2.0}),
        (Linear, {"start": 4.0, "end": 1.0}),
        (Cosine, {"start": 4.0, "end": 1.0}),
        (WarmUp, {"value": 1.0, "over": 0.5}),
        (Step, {"start": 1.0, "factor": 0.5, "every": 2}),
        (Piecewise, {"points": [[0.0, 1.0], [0.5, 2.0]]}),
        (OnMetric, {"metric": "accuracy", "start": 4.0, "factor": 0.5, "patience": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_builtin_schedules_pass(schedule, arguments):
    check_schedule(schedule, **arguments)


class CountsCalls(Schedule):
    def __init__(self):
        self.calls = 0

    def value(self, progress):
        self.calls += 1
        return float(self.calls)


class ForgetsItsState(Schedule):
    def __init__(self):
        self.highest = 0

    def value(self, progress):
        self.highest = self.highest or progress.step
        return float(self.highest)


class Infinite(Schedule):
    def value(self, progress):
        return math.inf


class Words(Schedule):
    def value(self, progress):
        return "1.0"


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (CountsCalls, "when asked again"),
        (ForgetsItsState, "resumed at step 2, it gives"),
        (Infinite, "expected a finite number"),
        (Words, "expected a number"),
        (dict, "expected a kdengine.Schedule"),
    ],
)
def test_a_wrong_schedule_is_refused(schedule, said):
    with pytest.raises(AssertionError, match=said):
        check_schedule(schedule)


class ChokesOnNone(Logger):
    def log(self, record, *, step, kind):
        sum(value for value in record.values() if not isinstance(value, str))


class ChangesRecords(Logger):
    def log(self, record, *, step, kind):
        record["seen"] = True


class KeepsAFile(Logger):
    def state_dict(self):
        return {"file": sys.stdout}


@pytest.mark.parametrize(
    ("logger", "said"),
    [
        (ChokesOnNone, "log of .* raised TypeError"),
        (ChangesRecords, "log changed its record"),
        (KeepsAFile, "its state cannot be checkpointed: file"),
        (lambda: 3, "expected a kdengine.Logger"),
    ],
)
def test_a_wrong_logger_is_refused(logger, said):
    with pytest.raises(AssertionError, match=said):
        check_logger(logger)


def test_a_function_is_a_logger():
    check_logger(lambda: lambda record, step: None)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("losses", marks=pytest.mark.slow),  # each loss goes through the kit in tests of its own
        "schedules",
        "loggers",
        "metrics",
        "models",
        "data",
        "projectors",
    ],
)
def test_builtin_plugins_pass(name):
    assert check_plugin(f"kdengine.{name}")


def plugin(**components):
    """A module that offers components of each kind."""
    module = ModuleType("stranger")
    module.kdengine_hook_version = 1
    for kind, offered in components.items():
        hook = f"kdengine_{kind}"
        namespace = {"offered": offered}
        exec(f"def {hook}():\n    return offered", namespace)
        setattr(module, hook, kdengine.hookimpl(namespace[hook]))
    return module


class Shifting(Metric):
    """Counts on."""

    total = 0.0

    def reset(self):
        pass

    def update(self, batch):
        self.total += 1

    def compute(self):
        return self.total


class Undocumented(LogitMSE):
    pass


Undocumented.__doc__ = None


class HalfDocumented(LogitMSE):
    """Squared error."""


def test_components_are_checked_by_kind():
    lines = check_plugin(plugin(losses={"mse": LogitMSE}, schedules={"linear": Linear}))
    assert lines == ["losses mse: checked", "schedules linear: signature only"]


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ({"losses": {"a": Undocumented}}, "stranger:a: has no docstring"),
        ({"losses": {"a": HalfDocumented}}, "docstring does not say what center means"),
        ({"losses": {"a": "nowhere:Loss"}}, "nowhere:Loss cannot be loaded"),
        ({"metrics": {"a": Shifting}}, "after reset on the same batches"),
        ({"losses": {"a:b": LogitMSE}}, "the name 'a:b'"),
    ],
)
def test_a_wrong_plugin_is_refused(components, said):
    with pytest.raises(AssertionError, match=said):
        check_plugin(plugin(**components))


def test_an_unknown_plugin_is_refused():
    with pytest.raises(AssertionError, match="is not installed"):
        check_plugin("no-such-plugin")


def test_the_recorder_refuses_unknown_hooks():
    with pytest.raises(ValueError, match="no callback is named steps_end"):
        HookRecorder({"steps_end": print})


def test_a_tiny_run_leaves_the_random_state_alone_and_repeats():
    import torch

    before = torch.get_rng_state()
    first, second = tiny_run(evaluate=True), tiny_run(evaluate=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.result.history == second.result.history
    assert first.result.steps == 4
    assert set(first.result.metrics) == {"top1"}
