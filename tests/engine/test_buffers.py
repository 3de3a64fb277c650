"""Buffers go back with the weights, and those that no state dict holds go on in a resumed run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.buffers import BufferSnapshot, HiddenBuffers
from kdengine.engine.ledger import Ledger
from kdengine.losses import CE, KD
from tests.engine.common import StopAt, engine, items


class Net(nn.Module):
    """Running statistics, one buffer that is in no state dict, and one that is made in the first forward pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, 5)
        self.register_buffer("drift", torch.zeros(12), persistent=False)
        self.register_buffer("constant", torch.ones(12))

    def forward(self, x):
        if self.training:
            self.drift = 0.9 * self.drift + 0.1 * x.detach().mean(0)
            if not hasattr(self, "made"):
                self.register_buffer("made", torch.zeros(()))
            self.made += x.detach().mean()
        return self.head(self.norm(x) - self.drift + getattr(self, "made", 0.0))


class LateLedger(Ledger):
    """Reports come one step late, as on an accelerator."""

    waiting = None

    def __init__(self, runtime):
        super().__init__(runtime)
        self.late = True

    def close(self, step, scale, found):
        self.late = False
        raised = found.tensor.clone()
        report, self.waiting = self.waiting, super().close(step, scale, found)
        found.tensor.copy_(raised)
        self.late = True
        return report

    def flush(self):
        report, self.waiting = self.waiting, None
        return report


def batches(bad=()):
    data = items(48)
    parts = [data[start : start + 8] for start in range(0, 48, 8)]
    return [(x * math.nan if step in bad else x, y) for step, (x, y) in enumerate(parts)]


def state(student):
    return {name: value.clone() for name, value in (*student.named_parameters(), *student.named_buffers())}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(params=["at once", "late"])
def reports(request, monkeypatch):
    if request.param == "late":
        monkeypatch.setattr("kdengine.engine.engine.Ledger", LateLedger)
    return request.param


def fit(student, loader, **options):
    return engine(student, losses={"ce": CE(), "kd": KD()}, weights={}, **options).fit(loader, epochs=1)


def test_a_step_that_is_skipped_leaves_the_buffers_of_before_it(reports):
    expected, student = Net(), Net()
    fit(expected, [batch for step, batch in enumerate(batches()) if step not in (1, 3)])
    result = fit(student, batches(bad=(1, 3)), nonfinite="skip")
    assert result.skipped == 2
    assert same(state(expected), state(student))


def test_a_buffer_that_a_skipped_step_has_made_is_made_again():
    expected, student = Net(), Net()
    fit(expected, batches()[1:])
    fit(student, batches(bad=(0,)), nonfinite="skip")
    assert same(state(expected), state(student))


def test_an_error_leaves_weights_and_buffers_of_before_the_step(reports):
    expected, student = Net(), Net()
    fit(expected, batches()[:2])
    with pytest.raises(kdengine.NonFiniteError, match="step 3"):
        fit(student, batches(bad=(2,)))
    assert same(state(expected), state(student))


def test_a_rollback_does_not_apply_gradients_of_the_weights_that_it_replaced(reports, tmp_path):
    after = {}

    class Watch:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            after[context.step] = state(student)

        @kdengine.hookimpl
        def kdengine_on_checkpoint_saved(self, context):
            after[f"saved {context.step}"] = state(student)

    student = Net()
    result = fit(
        student, batches(bad=(4,)), nonfinite="rollback", out=tmp_path / "run", checkpoint_every=3, plugins=[Watch()]
    )
    restored = 4 if reports == "at once" else 5  # the bad step, or the one whose gradients are of other weights
    assert torch.equal(after[restored]["head.weight"], after["saved 3"]["head.weight"])
    assert not torch.equal(after[3]["head.weight"], after["saved 3"]["head.weight"])
    assert result.skipped == (1 if reports == "at once" else 2)
    assert result.steps == 6
    assert all(torch.isfinite(value).all() for value in state(student).values())


def test_copies_are_made_in_the_same_memory_and_go_back():
    student = Net()
    snapshot = BufferSnapshot([student])
    snapshot.take(0)
    memory = {copy.data_ptr() for copy in snapshot._kept[0].copies}
    student.norm.running_mean.add_(1.0)
    snapshot.take(1)
    assert {copy.data_ptr() for copy in snapshot._kept[1].copies} == memory
    student.norm.running_mean.fill_(math.nan)
    student.drift = student.drift + 3.0
    snapshot.restore(1)
    assert torch.equal(student.norm.running_mean, torch.ones(12))
    assert torch.equal(student.drift, torch.zeros(12))


def test_a_buffer_that_is_resized_in_place_is_copied_at_its_size():
    module = nn.Module()
    module.register_buffer("seen", torch.zeros(1))
    snapshot = BufferSnapshot([module])
    snapshot.take(0)
    module.seen.resize_(3).fill_(2.0)
    snapshot.take(1)
    module.seen.resize_(2).fill_(5.0)
    snapshot.restore(1)
    assert module.seen.tolist() == [2.0, 2.0, 2.0]


def test_buffers_that_no_state_dict_holds_are_found_and_set():
    student = Net()
    hidden = HiddenBuffers(student)
    assert hidden.state_dict() == {"hidden": {}, "late": {}}
    student(torch.randn(4, 12))
    stored = hidden.state_dict()
    assert {kind: list(found) for kind, found in stored.items()} == {"hidden": ["drift"], "late": ["made"]}
    fresh = Net()
    HiddenBuffers(fresh).load_state_dict(stored)
    assert torch.equal(fresh.drift, student.drift)
    fresh.load_state_dict(student.state_dict())
    assert torch.equal(fresh.made, student.made)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_resumed_run_goes_on_with_buffers_that_are_hidden_or_made_late(tmp_path, at):
    expected, student = Net(), Net()
    loader = kdengine.loader(items(48), 8, seed=1)
    fit(expected, loader)
    with pytest.raises(KeyboardInterrupt):
        fit(Net(), loader, out=tmp_path / "run", checkpoint_every=1, plugins=[StopAt(at)])
    engine(student, losses={"ce": CE(), "kd": KD()}, weights={}, out=tmp_path / "run").fit(
        loader, epochs=1, resume="auto"
    )
    assert same(state(expected), state(student))
