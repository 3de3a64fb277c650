import time

import pluggy
import pytest
import torch

import kdengine
from kdengine import Batch, Decision
from kdengine.api.batch import Output
from kdengine.api.contexts import StepContext
from kdengine.api.errors import PluginError
from kdengine.api.hooks import CALLBACKS, HookSpecs
from kdengine.host import ROLES, Dispatch

from .conftest import acting, offers

OBSERVERS = [name for name, role in ROLES.items() if role == "observer"]
CONTROLLERS = [name for name, role in ROLES.items() if role == "controller"]


@pytest.fixture
def context():
    made = StepContext(None)
    made.step = 7
    return made


def test_every_callback_has_the_role_that_its_documentation_states():
    assert [f"kdengine_on_{name}" for name in ROLES] == list(CALLBACKS)
    for name, role in ROLES.items():
        documented = getattr(HookSpecs, f"kdengine_on_{name}").__doc__
        assert documented.lower().startswith(f"{role}: "), name


def test_callback_that_nobody_implements_is_none(host):
    calls = host(acting("a", "step_end")).dispatch()
    assert [name for name in ROLES if getattr(calls, name) is not None] == ["step_end"]
    assert isinstance(calls, Dispatch)
    assert not hasattr(calls, "__dict__")


def test_plugin_that_is_not_named_does_not_act(install, host):
    body = offers(x=1) + "\n@kdengine.hookimpl\ndef kdengine_on_step_end(context):\n    raise AssertionError\n"
    install("idle", body)
    made = host()
    made.component("losses", "idle:x")
    assert made.dispatch().step_end is None
    assert host("idle").dispatch().step_end is not None


@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_run_and_their_return_value_is_ignored(host, context, name):
    seen = []
    parts = [acting(part, name, lambda self, context: seen.append(self.kdengine_name) or 5) for part in "ab"]
    assert getattr(host(*parts).dispatch(), name)(context) is None
    assert seen == ["a", "b"]
    assert getattr(host(parts[0]).dispatch(), name)(context) is None
    assert seen == ["a", "b", "a"]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_controllers_return_all_decisions(host, context, name):
    decide = {"a": Decision.STOP, "b": None, "c": Decision.SAVE}
    parts = [acting(part, name, lambda self, context: decide[self.kdengine_name]) for part in decide]
    assert getattr(host(*parts).dispatch(), name)(context) == (Decision.STOP, Decision.SAVE)
    assert getattr(host(parts[1]).dispatch(), name)(context) == ()


def test_skip_is_for_the_hooks_that_can_follow_it(host, context):
    for name in CONTROLLERS:
        call = getattr(host(acting("a", name, lambda self: Decision.SKIP)).dispatch(), name)
        if name in ("step_start", "optimizer_step"):
            assert call(context) == (Decision.SKIP,)
        else:
            with pytest.raises(PluginError, match=r"Decision\.SKIP, which only step_start and optimizer_step"):
                call(context)


def test_controller_that_returns_something_else_is_attributed(host, context):
    call = host(acting("a", "step_end", lambda self, context: "stop")).dispatch().step_end
    with pytest.raises(PluginError, match=r"plugin 'a' .* at step 7: TypeError: it returned 'stop'; expected a kdeng"):
        call(context)


def test_contributors_of_a_batch_see_each_others_result(host, context):
    def double(self, context):
        return Batch(context.batch.inputs * 2)

    def look(self, context):
        seen.append(context.batch.inputs.item())

    seen = []
    call = host(acting("a", "batch", double), acting("b", "batch", look), acting("c", "batch", double)).dispatch().batch
    context.batch = Batch(torch.ones(1, 1))
    assert call(context) is None
    assert (seen, context.batch.inputs.item()) == ([2.0], 4.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2), r"TypeError: it returned a tensor \(2,\) float32; expected a kdengine.Batch or None"),
        (Batch(torch.ones(3, 1)), "ValueError: it returned a batch of 3 items in place of 2; expected as many"),
    ],
)
def test_contributed_batch_is_checked(host, context, value, message):
    context.batch = before = Batch(torch.ones(2, 1))
    call = host(acting("a", "batch", lambda self: value)).dispatch().batch
    with pytest.raises(PluginError, match=f"plugin 'a' .* failed in kdengine_on_batch at step 7: {message}"):
        call(context)
    assert context.batch is before


def test_contributed_teacher_output(host, context):
    better = Output(None, torch.zeros(1))
    host(acting("a", "teacher_output", lambda self: better)).dispatch().teacher_output(context)
    assert context.output is better
    host(acting("a", "teacher_output", lambda self: None)).dispatch().teacher_output(context)
    assert context.output is better
    with pytest.raises(PluginError, match=r"kdengine_on_teacher_output.*expected a kdengine.api.Output or None"):
        host(acting("a", "teacher_output", lambda self: 3)).dispatch().teacher_output(context)


@pytest.mark.parametrize("name", ["loss_terms", "step_end", "batch", "teacher_output"])
@pytest.mark.parametrize("failing", [0, 2, 4])
@pytest.mark.parametrize("trace", [False, True])
def test_failure_is_attributed_to_the_plugin_that_failed(host, context, name, failing, trace):
    def work(self, context):
        if self.kdengine_name == f"p{failing}":
            raise ValueError("bad shape")

    parts = [acting(f"p{i}", name, work) for i in range(5)]
    with pytest.raises(PluginError) as caught:
        getattr(host(*parts).dispatch(trace=trace), name)(context)
    error = caught.value
    assert f"failed in kdengine_on_{name} at step 7: ValueError: bad shape" in str(error)
    assert str(error).startswith(f"plugin 'p{failing}' (")
    assert (error.plugin, error.hook, error.step) == (f"p{failing}", f"kdengine_on_{name}", 7)
    assert isinstance(error.__cause__, ValueError)


def test_failure_of_one_function_in_two_plugins_names_the_right_one(host, context):
    calls = []

    @kdengine.hookimpl
    def shared(context):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError

    parts = [acting(part, kdengine_on_fit_end=staticmethod(shared)) for part in "ab"]
    with pytest.raises(PluginError, match="plugin 'b'"):
        host(*parts).dispatch().fit_end(context)


def test_failure_names_distribution_and_version(install, host, context):
    install("bad", "@kdengine.hookimpl\ndef kdengine_on_step_end():\n    return 1 / 0\n")
    with pytest.raises(PluginError, match=r"^plugin 'bad' \(kd-bad 1.2\) failed in kdengine_on_step_end at step 7: "):
        host("bad").dispatch().step_end(context)


def test_context_without_step_gives_no_step(host):
    def fail(self):
        raise ValueError("x")

    with pytest.raises(PluginError, match="failed in kdengine_on_fit_start: ValueError: x") as caught:
        host(acting("a", "fit_start", fail)).dispatch().fit_start(object())
    assert caught.value.step is None


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["loss_terms", "step_end", "batch"])
def test_interrupts_pass_through(host, context, interrupt, name):
    def stop(self):
        raise interrupt

    with pytest.raises(interrupt):
        getattr(host(acting("a", name, stop)).dispatch(), name)(context)


def test_order_is_priority_then_name(host, context):
    seen = []

    def note(self):
        seen.append(self.kdengine_name)

    made = host(
        acting("late", "fit_end", note, priority=10),
        acting("b", "fit_end", note),
        acting("early", "fit_end", note, priority=-1),
        acting("a", "fit_end", note),
    )
    made.dispatch().fit_end(context)
    assert seen == ["early", "a", "b", "late"]
    assert made.order() == ["fit_end: early (-1), a (0), b (0), late (10)"]


def test_order_lists_callbacks_in_the_order_of_a_fit(host):
    made = host(acting("a", "fit_end"), acting("b", "step_end", priority=3), acting("c", "fit_start"))
    assert made.order() == ["fit_start: c (0)", "step_end: b (3)", "fit_end: a (0)"]


def test_trace_counts_and_times_each_plugin_and_hook(host, context):
    made = host(
        acting("slow", "step_end", lambda self: time.sleep(0.01)),
        acting("fast", "step_end", lambda self: Decision.STOP),
    )
    calls = made.dispatch(trace=True)
    for _ in range(2):
        assert calls.step_end(context) == (Decision.STOP,)
    slow, fast = calls.report()
    assert (slow.plugin, slow.hook, slow.calls) == ("slow", "step_end", 2)
    assert (fast.plugin, fast.calls) == ("fast", 2)
    assert slow.seconds >= 0.02 > fast.seconds >= 0
    assert made.dispatch().report() == []


def test_stateful_plugins_are_those_with_both_methods(host):
    pair = {"state_dict": lambda self: {"n": 1}, "load_state_dict": lambda self, state: None}
    keeps = acting("keeps", "step_end", **pair)
    calls = host(keeps, acting("forgets", "step_end")).dispatch()
    assert calls.stateful == {"keeps": keeps}


def test_one_call_costs_far_less_than_pluggys_own(host, context):
    """A ratio, so that a busy machine slows both sides alike."""
    manager = pluggy.PluginManager("kdengine")
    manager.add_hookspecs(HookSpecs)
    plugin = acting("a", "loss_terms")
    manager.register(plugin)
    ours = host(plugin).dispatch().loss_terms

    def best(call):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(500):
                call()
            times.append(time.perf_counter() - start)
        return min(times)

    theirs = best(lambda: manager.hook.kdengine_on_loss_terms(context=context))
    assert best(lambda: ours(context)) < 0.5 * theirs
