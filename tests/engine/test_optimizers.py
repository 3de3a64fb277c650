"""An optimizer that the engine cannot step, or that leaves parameters out, is told before training."""

from __future__ import annotations

import warnings

import pytest
import torch

import kdengine
from kdengine.losses import KD, Hint
from tests.engine.common import engine, flat, items, mlp


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization, as its public code has it: two steps, or a closure."""

    def __init__(self, params, base=torch.optim.AdamW):
        super().__init__(params, {"rho": 0.05, "lr": 0.1})
        self.base_optimizer = base(self.param_groups)

    def first_step(self):
        pass

    def second_step(self):
        pass

    def step(self, closure=None):
        assert closure is not None


class Insists(torch.optim.SGD):
    """As some public code of sharpness-aware minimization has it."""

    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("it needs a closure")


class CallsIt(torch.optim.SGD):
    def step(self, closure=None):
        with torch.enable_grad():
            closure()


class CallsItIfThere(torch.optim.SGD):
    def step(self, closure=None):
        loss = closure() if closure is not None else None
        super().step()
        return loss


class ScheduleFree(torch.optim.SGD):
    """One set of weights for training, one for evaluation."""

    def train(self):
        pass

    def eval(self):
        pass


class WantsLoss(torch.optim.SGD):
    def step(self, loss, retain=False):
        pass


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda named: torch.optim.LBFGS([p for _, p in named]), r"LBFGS.step\(\) needs closure"),
        (lambda named: SAM([p for _, p in named]), r"SAM updates in two steps.*\(AdamW\)"),
        (lambda named: ScheduleFree([p for _, p in named], lr=0.1), r"ScheduleFree keeps one set of weights"),
        (lambda named: Insists([p for _, p in named], lr=0.1), r"Insists.step\(\) refuses to run without a closure"),
        (lambda named: CallsIt([p for _, p in named], lr=0.1), r"CallsIt.step\(\) refuses to run without a closure"),
        (lambda named: WantsLoss([p for _, p in named], lr=0.1), r"WantsLoss.step\(\) needs loss"),
        ("adam", r"lambda named: torch.optim.Adam\("),
        ("lamb", r"lambda named: torch.optim.AdamW\("),
        ([], r"expected a torch.optim.Optimizer"),
        (lambda named: "adam", "returned a str"),
        (lambda: torch.optim.SGD(mlp().parameters(), lr=0.1), r"is called with \(named\): too many"),
        (lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr), r"is called with \(named\): missing .*'lr'"),
        (lambda named: torch.optim.SGD(mlp().parameters(), lr=0.1), "no parameter of the student"),
    ],
)
def test_an_optimizer_of_another_interface_is_refused_before_training(optimizer, said, tmp_path):
    student = mlp()
    before = flat(student).clone()
    with pytest.raises(kdengine.ConfigurationError, match=said):
        engine(student, optimizer=optimizer, out=tmp_path / "run").fit(kdengine.loader(items(), 8), epochs=1)
    assert torch.equal(before, flat(student))
    assert not list((tmp_path / "run").glob("**/*.jsonl"))


def test_an_instance_is_looked_at_as_well():
    student = mlp()
    with pytest.raises(kdengine.ConfigurationError, match="closure"):
        engine(student, optimizer=torch.optim.LBFGS(student.parameters())).fit(kdengine.loader(items(), 8), epochs=1)


def test_a_wrapper_that_only_passes_modes_on_is_an_optimizer():
    class Wrapper(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, lr=0.1)
            self.optimizer = torch.optim.SGD(params, lr=0.1)

        def train(self):
            pass

        def eval(self):
            pass

    made = engine(optimizer=lambda named: Wrapper([p for _, p in named]))
    assert made.fit(kdengine.loader(items(), 8), epochs=1).steps == 4


def test_an_optimizer_that_can_do_without_its_closure_is_taken():
    made = engine(optimizer=lambda named: CallsItIfThere([p for _, p in named], lr=0.1))
    assert made.fit(kdengine.loader(items(), 8), epochs=1).steps == 4


def test_a_factory_that_leaves_out_what_a_loss_brings_is_warned_of():
    student = mlp()
    hint = {"losses": {"hint": Hint(student="1", teacher="1"), "kd": KD()}, "weights": {}}
    forgetful = engine(student, optimizer=lambda named: torch.optim.SGD(student.parameters(), lr=0.1), **hint)
    with pytest.warns(UserWarning, match=r"leaves out losses.hint.*named"):
        forgetful.fit(kdengine.loader(items(), 8), epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(**hint).fit(kdengine.loader(items(), 8), epochs=1)
