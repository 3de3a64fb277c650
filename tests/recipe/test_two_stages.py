"""A recipe in two stages: hints first, then the teacher's logits."""

from __future__ import annotations

import pytest
import torch

import kdengine
from kdengine.engine import rundir
from tests.engine.common import StopAt

from .conftest import SMALL

STEPS_PER_EPOCH = 5
TWO_STAGES = (
    SMALL.replace("epochs = 2 }\nevaluate", "epochs = 4 }\nevaluate")
    .replace(
        "losses.kd = { weight = 0.9, temperature = 2.0 }",
        """losses.kd.temperature = 2.0
losses.kd.weight = { schedule = "piecewise", points = [[0.0, 0.0], [0.5, 1.0]], interpolation = "constant" }
losses.hint.student = "hidden.0"
losses.hint.teacher = "hidden.0"
losses.hint.weight = { schedule = "piecewise", points = [[0.0, 1.0], [0.5, 0.0]], interpolation = "constant" }""",
    )
    .replace(
        "losses.ce = { weight = 0.1 }",
        'losses.ce.weight = { schedule = "step", start = 0.0, factor = 1.0, every = 1 }',
    )
)


class Heads:
    """The student's last layer before each step of its fit, and how often the teacher's logits were compared."""

    kdengine_hook_version = 1

    def __init__(self):
        self.heads, self.hidden, self.terms = [], [], []

    @kdengine.hookimpl
    def kdengine_on_step_start(self, context):
        student = context.fit.student
        self.heads.append(student.fc.weight.detach().clone())
        self.hidden.append(student.hidden[0][0].weight.detach().clone())

    @kdengine.hookimpl
    def kdengine_on_loss_terms(self, context):
        self.terms.append({name: float(value) for name, value in context.terms.items()})


def test_the_hint_trains_the_layers_below_it_and_then_the_logits_train_all(carry_out, tmp_path):
    heads = Heads()
    optimizer = "optimizer={ use = 'sgd', lr = 0.1 }"
    summary = carry_out(TWO_STAGES, "baseline=false", optimizer, plugins=[heads])
    assert summary["steps"] == len(heads.heads) == 4 * STEPS_PER_EPOCH
    turn = 2 * STEPS_PER_EPOCH
    assert all(torch.equal(head, heads.heads[0]) for head in heads.heads[:turn])
    assert not torch.equal(heads.hidden[0], heads.hidden[turn - 1])
    assert not torch.equal(heads.heads[turn], heads.heads[-1])
    first, second = heads.terms[: turn - 1], heads.terms[turn:]
    assert all(terms["kd"] == 0.0 < terms["hint"] for terms in first)
    assert all(terms["hint"] == 0.0 < terms["kd"] for terms in second)
    records = [line for line in rundir.read_records(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "evaluate"]
    assert len(records) == 4


def test_a_run_that_is_cut_in_either_stage_ends_the_same(carry_out, tmp_path):
    overrides = ("baseline=false", "train.checkpoint_every=1")
    whole = carry_out(TWO_STAGES, *overrides)
    for step in (7, 13):
        with pytest.raises(KeyboardInterrupt):
            carry_out(TWO_STAGES, *overrides, plugins=[StopAt(step)], out=tmp_path / "cut", resume=step > 7)
    resumed = carry_out(TWO_STAGES, *overrides, out=tmp_path / "cut", resume=True)
    assert resumed["student"]["metrics"] == whole["student"]["metrics"]
