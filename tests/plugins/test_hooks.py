"""Every hook through a real fit: when it fires, what it sees, what its answer does."""

import pytest
import torch
from torch import nn

import kdengine
from kdengine.api import Batch, Decision, LossError, Metric, Output, PluginError, Schedule, TeacherSource
from kdengine.api.hooks import CALLBACKS, CONTRIBUTIONS
from kdengine.host import Host
from kdengine.losses import LogitMSE
from kdengine.testing import HookRecorder, tiny_run
from kdengine.testing.run import perceptron

STEP = ["step_start", "teacher_output", "loss_terms", "backward_end", "optimizer_step", "step_end"]


def fit(answers=None, **options):
    """A tiny fit with a recorder; each hook named in ``answers`` calls a function of its context."""
    recorder = HookRecorder(answers)
    return recorder, tiny_run(plugins=[recorder], **options)


def contexts(hook, read, **options):
    """What ``read`` finds in the context at each call of a hook."""
    seen = []
    fit({hook: lambda context: seen.append(read(context))}, **options)
    return seen


# The order


def test_a_whole_fit_calls_the_hooks_in_the_order_of_the_loop(tmp_path):
    recorder, _ = fit(epochs=2, accumulate=2, evaluate=True, checkpoint_every=1, out=tmp_path / "run")
    micro = ["teacher_output", "loss_terms"]
    step = ["batch", "batch", "step_start", *micro * 2, "backward_end", "optimizer_step", "step_end"]
    epoch = ["epoch_start", *[*step, "checkpoint_saved"] * 2, "evaluate_start", "evaluate_end", "epoch_end"]
    assert recorder.hooks == ["fit_start", *[*epoch, "checkpoint_saved"] * 2, "fit_end"]
    assert recorder.calls[0] == ("fit_start", 0)
    assert [step for hook, step in recorder.calls if hook == "step_end"] == [0, 1, 2, 3]
    assert [step for hook, step in recorder.calls if hook == "evaluate_end"] == [2, 4]


def test_every_callback_but_exception_fires_in_a_whole_fit(tmp_path):
    recorder, _ = fit(evaluate=True, out=tmp_path / "run")
    assert {f"kdengine_on_{hook}" for hook in recorder.hooks} == set(CALLBACKS) - {"kdengine_on_exception"}


# What observers see


def test_fit_start_sees_the_whole_fit(tmp_path):
    out = tmp_path / "run"

    def read(context):
        assert isinstance(context.student, nn.Module)
        assert not context.teacher[0].training
        assert isinstance(context.optimizer, torch.optim.SGD)
        return context.name, context.steps, context.epochs, context.step, context.out, list(context.losses)

    assert contexts("fit_start", read, epochs=2, out=out, losses=LogitMSE()) == [
        ("student", 8, 2, 0, out, ["logitmse"])
    ]


def test_epoch_start_and_epoch_end_know_epoch_step_and_metrics():
    read = [lambda c: (c.epoch, c.step), lambda c: (c.epoch, c.step, sorted(c.metrics))]
    assert contexts("epoch_start", read[0], epochs=2) == [(0, 0), (1, 4)]
    assert contexts("epoch_end", read[1], epochs=2, evaluate=True) == [(0, 4, ["top1"]), (1, 8, ["top1"])]


def test_batch_comes_before_the_models():
    def read(context):
        with pytest.raises(kdengine.ConfigurationError, match="before the student ran"):
            _ = context.batch.student
        return context.step, context.micro, context.batch.size

    assert contexts("batch", read, accumulate=2) == [(0, 0, 8), (0, 1, 8), (1, 0, 8), (1, 1, 8)]


def test_teacher_output_is_the_teachers_on_this_batch():
    def read(context):
        with torch.no_grad():
            expected = context.fit.teacher[0](context.batch.inputs)
        assert not context.output.logits.requires_grad
        return torch.equal(context.output.logits, expected)

    assert contexts("teacher_output", read) == [True] * 4


def test_loss_terms_are_detached_shares_by_name():
    def read(context):
        assert not any(term.requires_grad for term in context.terms.values())
        expected = (context.batch.student.logits - context.batch.teacher.logits).square().mean() / 2
        return list(context.terms), torch.allclose(context.terms["mse"], expected)

    assert contexts("loss_terms", read, losses={"mse": LogitMSE()}, weights={"mse": 0.5}) == [(["mse"], True)] * 4


def test_backward_end_sees_complete_gradients_before_clipping():
    def norm(context):
        grads = [parameter.grad for parameter in context.fit.student.parameters()]
        return float(torch.stack([grad.norm() for grad in grads]).norm())

    before = contexts("backward_end", norm, clip=1e-3)
    after = contexts("optimizer_step", lambda context: (norm(context), float(context.gradient_norm)), clip=1e-3)
    assert min(before) > 1e-2
    assert [clipped for clipped, _ in after] == pytest.approx([1e-3] * 4, rel=1e-2)
    assert [seen for _, seen in after] == pytest.approx(before, rel=1e-5)


def test_evaluations_are_empty_at_the_start_and_filled_at_the_end():
    read = [lambda c: dict(c.metrics), lambda c: (c.step, c.epoch, sorted(c.metrics))]
    assert contexts("evaluate_start", read[0], evaluate=True) == [{}]
    assert contexts("evaluate_end", read[1], evaluate=True) == [(4, 0, ["top1"])]


def test_checkpoint_saved_names_a_directory_that_is_there(tmp_path):
    seen = contexts("checkpoint_saved", lambda c: (c.path.is_dir(), c.step), out=tmp_path / "run", checkpoint_every=2)
    assert seen[0] == (True, 2)
    assert seen[-1] == (True, 4)


def test_exception_fires_does_not_hide_the_error_and_fit_end_follows():
    class Breaks(LogitMSE):
        def per_item(self, batch):
            raise ZeroDivisionError("the loss")

    seen = []
    recorder = HookRecorder({"exception": lambda context: seen.append((context.step, repr(context.exception)))})
    with pytest.raises(LossError, match=r"raised ZeroDivisionError .*the loss") as caught:
        tiny_run(Breaks(), plugins=[recorder])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert seen == [(0, repr(caught.value))]
    assert recorder.hooks[-2:] == ["exception", "fit_end"]


def test_what_exception_raises_itself_is_a_note_on_the_error():
    def stumble(context):
        raise KeyError("second")

    recorder = HookRecorder({"exception": stumble, "backward_end": lambda context: 1 / 0})
    with pytest.raises(PluginError, match="in kdengine_on_backward_end at step 0: ZeroDivisionError") as caught:
        tiny_run(plugins=[recorder])
    assert "KeyError: 'second'" in caught.value.__notes__[0]


def test_fit_end_sees_the_last_step():
    assert contexts("fit_end", lambda c: (c.step, c.epoch)) == [(4, 0)]


@pytest.mark.parametrize("hook", sorted(set(CALLBACKS) - {"kdengine_on_exception"}))
def test_a_failure_names_plugin_and_hook(hook, tmp_path):
    short = hook.removeprefix("kdengine_on_")
    with pytest.raises(PluginError, match="plugin 'hook-recorder'") as caught:
        fit({short: lambda context: 1 / 0}, evaluate=True, out=tmp_path / "run")
    assert (caught.value.plugin, caught.value.hook) == ("hook-recorder", hook)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# What contributors change


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.engine.student.parameters()])


def test_another_batch_changes_training_and_none_does_not():
    def empty(context):
        old = context.batch
        return Batch(torch.zeros_like(old.inputs), old.labels, old.index)

    plain = weights(tiny_run())
    assert torch.equal(weights(fit({"batch": lambda context: None})[1]), plain)
    changed = weights(fit({"batch": empty})[1])
    first_layer = perceptron(8).hidden.weight.numel()
    assert not torch.equal(changed, plain)
    start = []
    fit({"fit_start": lambda c: start.append(c.student.hidden.weight.detach().clone().flatten())})
    assert torch.equal(changed[:first_layer], start[0]), "zeros as inputs leave the first layer's weights alone"


def test_another_teacher_output_changes_training():
    def agree(context):
        with torch.no_grad():
            logits = context.fit.student(context.batch.inputs)
        return Output(logits, logits)

    start = []
    changed = fit({
        "teacher_output": agree,
        "fit_start": lambda c: start.extend(p.detach().clone().flatten() for p in c.student.parameters()),
    })[1]  # fmt: skip
    assert torch.equal(weights(changed), torch.cat(start)), "a teacher that agrees teaches nothing"


# What controllers decide


@pytest.mark.parametrize("hook", ["step_start", "optimizer_step"])
def test_skip_leaves_the_update_out(hook):
    start = []
    _, run = fit({
        hook: lambda context: Decision.SKIP,
        "fit_start": lambda c: start.extend(p.detach().clone().flatten() for p in c.student.parameters()),
    })  # fmt: skip
    assert torch.equal(weights(run), torch.cat(start))
    assert run.result.steps == 4
    assert run.result.skipped == 4


def test_step_start_skips_the_models_too():
    recorder, _ = fit({"step_start": lambda context: Decision.SKIP if context.step == 1 else None})
    assert [hook for hook, step in recorder.calls if step == 1 and hook in STEP] == ["step_start", "step_end"]


def test_step_end_saves_and_stops(tmp_path):
    decisions = {1: Decision.SAVE, 2: Decision.STOP}
    recorder, run = fit({"step_end": lambda context: decisions.get(context.step)}, out=tmp_path / "run")
    assert ("checkpoint_saved", 2) in recorder.calls
    assert (run.result.status, run.result.steps) == ("stopped", 3)


@pytest.mark.parametrize("hook", ["evaluate_end", "epoch_end"])
def test_stop_ends_the_fit_after_the_epoch(hook):
    recorder, run = fit({hook: lambda context: Decision.STOP}, epochs=3, evaluate=True)
    assert (run.result.status, run.result.steps) == ("stopped", 4)
    assert recorder.hooks[-2:] == ["epoch_end", "fit_end"]


@pytest.mark.parametrize("hook", ["step_start", "optimizer_step"])
def test_stop_at_the_beginning_of_a_step_ends_the_fit_after_it(hook):
    _, run = fit({hook: lambda context: Decision.STOP})
    assert (run.result.status, run.result.steps) == ("stopped", 1)


# State and time


class Counter:
    kdengine_hook_version = 1
    kdengine_name = "counter"

    def __init__(self, stop=None):
        self.steps, self.stop = 0, stop

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        self.steps += 1
        return Decision.STOP if self.steps == self.stop else None

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_the_state_of_a_plugin_goes_through_a_checkpoint(tmp_path):
    def interrupt(context):
        if context.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_run(plugins=[Counter(), HookRecorder({"backward_end": interrupt})], epochs=2, out=tmp_path / "run")
    second = Counter()
    run = tiny_run(plugins=[second], epochs=2, out=tmp_path / "run", resume="auto")
    assert run.result.steps == 8
    assert second.steps == 8


def test_trace_hooks_gives_calls_and_seconds():
    run = tiny_run(plugins=[Counter()], trace_hooks=True)
    (row,) = run.engine.hook_times
    assert (row.plugin, row.hook, row.calls) == ("counter", "step_end", 4)
    assert row.seconds > 0


# What is offered


class Fixed(TeacherSource):
    """The module's logits, halved."""

    def __init__(self, module):
        self.module = module

    def modules(self):
        return [self.module]

    def place(self, device):
        self.module.eval().requires_grad_(False)

    def forward(self, batch):
        return self.module(batch.inputs) / 2


class Share(Metric):
    """A constant."""

    def reset(self):
        self.batches = 0

    def update(self, batch):
        self.batches += 1

    def compute(self):
        return 0.25 if self.batches else None


class Half(Schedule):
    """A half."""

    def value(self, progress):
        return 0.5


class Offers:
    """One component of each kind."""

    kdengine_hook_version = 1

    def __init__(self):
        self.records = []

    def log(self, record, step):
        self.records.append((step, record))


def flip(batch, generator):
    return Batch(-batch.inputs, batch.labels, batch.index)


def dataset(split):
    return torch.utils.data.TensorDataset(torch.ones(4, 6), torch.zeros(4).long())


KIND = {
    "losses": lambda self: LogitMSE,
    "schedules": lambda self: Half,
    "loggers": lambda self: lambda: self.log,
    "metrics": lambda self: Share,
    "models": lambda self: lambda: perceptron(4),
    "datasets": lambda self: dataset,
    "transforms": lambda self: lambda: flip,
    "optimizers": lambda self: torch.optim.Adagrad,
    "teachers": lambda self: Fixed,
    "projectors": lambda self: lambda student, teacher: nn.Linear(student[0], teacher[0]),
}


def offering(kind):
    def offer(self):
        return {"own": KIND[kind](self)}

    offer.__name__ = f"kdengine_{kind}"
    return kdengine.hookimpl(offer)


for _kind in KIND:
    setattr(Offers, f"kdengine_{_kind}", offering(_kind))


def test_there_is_a_component_for_every_contribution_hook():
    assert {f"kdengine_{kind}" for kind in KIND} == set(CONTRIBUTIONS)


def test_components_of_every_kind_are_found_and_make_a_fit():
    from kdengine.losses import Hint

    plugin = Offers()
    host = Host([plugin], autoload=False)
    own = {kind: host.component(kind, "offers:own") for kind in KIND}
    assert all(host.component(kind, "own") == found for kind, found in own.items())
    made = {kind: component.load() for kind, component in own.items()}
    run = tiny_run(
        {"own": made["losses"](), "hint": Hint("hidden", "hidden", projector="own")},
        weights={"own": made["schedules"]()},
        student=made["models"](),
        teacher=made["teachers"](perceptron(16)),
        optimizer=lambda named: made["optimizers"]([p for _, p in named], lr=0.1),
        batch_transforms=[made["transforms"]()],
        metrics={"share": "own"},
        loggers=["own"],
        evaluate=True,
        plugins=host,
        log_every=2,
    )
    assert run.result.metrics == {"share": 0.25}
    assert isinstance(run.engine.losses["hint"].regressors[0], nn.Linear)
    assert isinstance(run.engine._fit.optimizer, torch.optim.Adagrad)
    assert [step for step, _ in plugin.records] == [2, 4, 4]
    assert plugin.records[0][1]["weights.own"] == 0.5
    assert len(made["datasets"]("train")) == 4
    assert host.versions() == {"offers": "unknown"}


def test_offering_does_not_act_and_acting_needs_no_offer():
    assert Host([Offers()], autoload=False).order() == []
