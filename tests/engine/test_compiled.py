"""Features of compiled models: they arrive, and are those of the models as they are."""

from __future__ import annotations

import pytest
import torch
from torch import _dynamo as dynamo
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import kdengine
from kdengine.api.errors import LossError
from kdengine.engine.compiled import guard_hooks
from kdengine.engine.features import Capture
from kdengine.engine.teacher import LiveTeacher
from kdengine.engine.wrappers import unwrapped
from kdengine.losses import KD, Hint
from tests.engine.common import engine, flat, items


@pytest.fixture
def quick(monkeypatch):
    """Tracing and autograd as always, without the seconds that making kernels takes."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))


@pytest.fixture(autouse=True)
def config_as_found():
    dynamo.reset()
    counters.clear()
    with dynamo.config.patch(skip_nnmodule_hook_guards=True):
        yield


def network(width):
    torch.manual_seed(width)
    inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), inner, nn.Linear(width, 5))


PATHS = ["?", "2.0", "3:input"]


def fit(compiled):
    torch.manual_seed(0)
    records, student = [], network(8)
    engine(
        student,
        LiveTeacher(network(16), compile=compiled),
        compile=compiled,
        losses={"hint": Hint(PATHS, PATHS), "kd": KD()},
        weights={},
        accumulate=2,
        metrics={"agreement": "agreement"},
        log_every=1,
        loggers=[lambda record, step: records.append(record)],
    ).fit(
        kdengine.loader(items(), 8, seed=1),
        kdengine.loader(items(), 8, shuffle=False),
        epochs=2,
    )
    return [record["hint"] for record in records if "hint" in record], flat(student)


def check_against_eager():
    eager = fit(compiled=False)
    assert not counters["stats"]
    compiled = fit(compiled=True)
    assert counters["stats"]["unique_graphs"] >= 4, "student and teacher, training and evaluation"
    assert not counters["graph_break"]
    assert len(eager[0]) == 4
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)
    assert torch.allclose(compiled[1], eager[1], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("quick")
def test_a_fit_of_compiled_models_with_evaluations_in_between_is_that_of_eager_ones():
    check_against_eager()


@pytest.mark.slow
def test_the_same_with_real_kernels():
    check_against_eager()


@pytest.mark.parametrize("before", [True, False])
def test_hooks_that_are_set_before_or_after_the_first_run_fire_and_compile_once(before):
    model = network(8)
    counter = CompileCounter()
    capture = Capture(model, {"hint": PATHS}, "student")
    model.compile(backend=counter)
    guard_hooks()
    if not before:
        model(torch.randn(4, 12))
    seen = []
    for _ in range(3):
        capture.attach()
        for _ in range(2):
            inputs = torch.randn(4, 12)
            capture.start()
            output = model(inputs)
            features = capture.take()
            assert torch.equal(features["3"], output)
            expected = nn.functional.linear(features["1"], model[2][0].weight, model[2][0].bias)
            assert torch.allclose(features["2.0"], expected), "as it was before the ReLU changed it in place"
            assert (features["2.0"] < 0).any()
            seen.append(counter.frame_count)
        capture.remove()
    assert len(set(seen)) == 1, "attaching the same hooks again compiles nothing"


def test_a_model_that_was_compiled_without_guards_is_told_how_to_compile():
    student = network(8)
    wrapped = torch.compile(student, backend="eager")
    batch = items()[:8]
    wrapped(batch[0])
    foreign = engine(student, losses={"hint": Hint("1", "1")}, weights={}, optimizer=None)
    with pytest.raises(LossError, match=r"hint\.student: no feature arrived from '1'.*hook_guards = False before its"):
        foreign.objective(batch, student=wrapped)
    dynamo.reset()
    assert foreign.objective(batch, student=wrapped).requires_grad, "the engine has put the guards on meanwhile"


def test_a_foreign_loop_may_compile_the_student_before_or_after_the_engine_is_made():
    batch, student = items()[:8], network(8)
    losses = {"hint": Hint(PATHS, PATHS), "kd": KD()}
    early = torch.compile(student, backend="eager")
    foreign = engine(student, network(16), losses=losses, weights={}, optimizer=None)
    expected = foreign.objective(batch)
    late = torch.compile(student, backend="eager")
    for wrapped in (early, late, early):
        total = foreign.objective(batch, student=wrapped)
        assert torch.allclose(total, expected)
        student.zero_grad()
        total.backward()
        assert all(parameter.grad is not None for parameter in student.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_a_teacher_that_comes_compiled_is_named_by_the_paths_inside():
    teacher = torch.compile(network(16), backend="eager")
    losses = {"hint": Hint("2.*", "2.*")}
    assert engine(network(8), teacher, losses=losses, weights={}).fit(kdengine.loader(items(), 8), epochs=1).steps == 4


def test_wrappers_are_taken_off():
    model = network(8)
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model
    assert unwrapped(model) is model
