"""Which evaluation is the best, and that its student can be had."""

from __future__ import annotations

import json
import math
import shutil
import warnings

import pytest
import torch

import kdengine
from kdengine.engine import state
from tests.engine.common import engine, flat, items, mlp


def giving(name, values):
    """An evaluation function that gives one value after the other."""
    left = iter(values)
    return lambda student: {name: next(left)}


def fit(evaluation, epochs, *, student=None, resume=None, **options):
    made = engine(student or mlp(), seed=0, **options)
    return made.fit(kdengine.loader(items(), 8), evaluation, epochs=epochs, resume=resume)


class Undirected:
    """An object that does not say which way it is better."""

    def __init__(self, values, **said):
        self.values = iter(values)
        vars(self).update(said)

    def reset(self):
        pass

    def update(self, logits, labels):
        pass

    def compute(self):
        return next(self.values)

    def __deepcopy__(self, memo):
        return type(self)([])


class Plain(kdengine.Metric):
    def __init__(self, values):
        self.values = iter(values)

    def reset(self):
        pass

    def update(self, batch):
        pass

    def compute(self):
        return next(self.values)


class Told(Plain):
    def __init__(self, values):
        super().__init__(values)
        self.higher_is_better = False


VALUES = [0.3, 0.1, 0.2]
UP, DOWN = (0.3, 1, "max"), (0.1, 2, "min")


@pytest.mark.parametrize(
    ("make", "options", "expected", "warned"),
    [
        (lambda v: {"score": Undirected(v, higher_is_better=False)}, {}, DOWN, None),
        (lambda v: {"val_loss": Undirected(v, higher_is_better=True)}, {}, UP, None),
        (lambda v: {"score": Undirected(v, higher_is_better=None)}, {}, UP, None),
        (lambda v: {"score": Undirected(v)}, {"monitor_mode": "min"}, DOWN, None),
        (lambda v: {"word_error_rate": Undirected(v)}, {}, DOWN, "'word_error_rate' is better; by its name"),
        (lambda v: {"val_loss": Plain(v)}, {}, DOWN, "'val_loss' is better; by its name"),
        (lambda v: {"val_loss": Plain(v)}, {"monitor_mode": "min"}, DOWN, None),
        (lambda v: {"val_loss": Plain(v)}, {"monitor_mode": "max"}, UP, None),
        (lambda v: {"answer": Plain(v)}, {}, UP, None),
        (lambda v: {"answer": Told(v)}, {}, DOWN, None),
        (lambda v: {"score": Undirected(v, higher_is_better=False)}, {"monitor_mode": "max"}, UP, "the opposite"),
    ],
)
def test_a_direction_is_what_the_user_or_the_metric_or_with_a_warning_the_name_says(make, options, expected, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        best = fit(kdengine.loader(items(), 8), 3, metrics=make(VALUES), **options).best
    assert (best["value"], best["epoch"], best["mode"]) == expected
    assert [str(warning.message) for warning in caught if warned is None] == []
    assert warned is None or (len(caught) == 1 and warned in str(caught[0].message))


@pytest.mark.parametrize(("name", "mode"), [("perplexity", "min"), ("wer", "min"), ("top-1", "max"), ("bleu", "max")])
def test_the_direction_of_an_evaluation_functions_number_is_in_its_name(name, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fit(giving(name, VALUES), 3).best["mode"] == mode


def test_a_function_may_say_its_direction_by_an_attribute():
    def gap(logits, labels):
        return logits.max(-1).values - logits.min(-1).values

    gap.higher_is_better = False
    assert fit(kdengine.loader(items(), 8), 1, metrics=[gap]).best["mode"] == "min"


class Collection(Undirected):
    def __getitem__(self, name):
        return Undirected([], higher_is_better=name != "gap")


def test_a_number_of_a_collection_has_the_direction_of_its_own():
    values = [{"gap": value, "hits": value} for value in VALUES]
    best = fit(kdengine.loader(items(), 8), 3, metrics={"all": Collection(values)}, monitor="all.gap").best
    assert (best["metric"], best["value"], best["mode"]) == ("all.gap", 0.1, "min")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1])
def test_a_value_that_is_not_finite_is_never_the_best_and_ends_no_run(bad, at, tmp_path):
    values = [0.5, 0.25]
    values.insert(at, bad)
    result = fit(giving("score", values), 3, out=tmp_path / "run")
    assert result.best["value"] == 0.5
    assert str(result.history[at]["score"]) == str(bad), "what was measured is told as it was"
    assert kdengine.load_run(tmp_path / "run").summary["best"]["value"] == 0.5


def test_a_last_value_that_is_not_finite_is_null_in_the_summary(tmp_path):
    messages = []

    class Listener(kdengine.Logger):
        def message(self, text):
            messages.append(text)

    result = fit(giving("score", [math.nan]), 1, out=tmp_path / "run", loggers=[Listener()])
    assert math.isnan(result.metrics["score"])
    assert result.best is None
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["student"]["metrics"] == {"score": None}
    assert any("score is nan at step 4" in message for message in messages)
    again = fit(giving("score", []), 1, out=tmp_path / "run", resume=True)
    assert (again.status, again.best) == ("finished", None)


def test_a_run_whose_checkpoint_holds_nan_for_its_best_can_be_finished(tmp_path, monkeypatch):
    collect = state.collect
    poisoned = {"metric": "score", "value": math.nan, "step": 4, "epoch": 1}
    with monkeypatch.context() as patched:
        patched.setattr(state, "collect", lambda fit: {**collect(fit), "best": poisoned})
        fit(giving("score", [0.1, 0.2]), 2, out=tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    assert fit(giving("score", []), 2, out=tmp_path / "run", resume=True).best is None
    assert fit(giving("score", [0.3, 0.2]), 4, out=tmp_path / "run", resume=True).best["value"] == 0.3


def test_a_resume_that_monitors_another_metric_has_a_best_of_its_own(tmp_path):
    fit(lambda student: {"a": 9.0, "b": 0.1}, 1, out=tmp_path / "run")
    resumed = fit(lambda student: {"a": 9.0, "b": 0.2}, 2, out=tmp_path / "run", resume=True, monitor="b")
    assert (resumed.best["metric"], resumed.best["value"], resumed.best["epoch"]) == ("b", 0.2, 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda student: 0.5, "returned a float; expected a mapping"),
        (lambda student: None, "returned None; expected a mapping"),
        (lambda student: {"per_class": torch.zeros(3)}, r"'per_class' gives a tensor of shape \(3,\)"),
        (lambda student: {"score": "high"}, "'score' gives a str"),
        (lambda student: 1 / 0, "division"),
    ],
)
def test_an_evaluation_that_fails_costs_no_step(given, said, tmp_path):
    with pytest.raises((kdengine.ConfigurationError, ZeroDivisionError), match=said) as caught:
        fit(given, 1, out=tmp_path / "run")
    assert any("resume='auto'" in note for note in caught.value.__notes__)
    student, whole = mlp(), mlp()
    resumed = fit(giving("score", [0.5]), 1, student=student, out=tmp_path / "run", resume=True)
    unbroken = fit(giving("score", [0.5]), 1, student=whole)
    assert torch.equal(flat(student), flat(whole))
    assert (resumed.steps, resumed.history) == (4, unbroken.history)


@pytest.mark.parametrize("monitor", ["top2", "top1.macro.x"])
def test_a_monitor_that_no_metric_gives_is_told_before_training(monitor, tmp_path):
    student = mlp()
    before = flat(student).clone()
    with pytest.raises(kdengine.ConfigurationError, match="monitor"):
        fit(kdengine.loader(items(), 8), 1, student=student, metrics=["top1"], monitor=monitor, out=tmp_path / "run")
    assert monitor != "top2" or torch.equal(before, flat(student))


@pytest.mark.parametrize("options", [{}, {"ema": 0.5}], ids=["weights", "moving average"])
def test_the_best_student_is_the_one_that_was_evaluated(options, tmp_path):
    seen = []
    values = iter([0.1, 0.9, 0.2, 0.3])

    def evaluate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": next(values)}

    result = fit(evaluate, 4, out=tmp_path / "run", keep=1, **options)
    run = kdengine.load_run(tmp_path / "run")
    best = run.student(best=True)
    assert set(best) == set(run.student())
    assert all(torch.equal(best[name], seen[1][name]) for name in best)
    assert not torch.equal(best["0.weight"], run.student()["0.weight"])
    model = mlp()
    assert result.load_best(model) is model
    assert torch.equal(model[0].weight, seen[1]["0.weight"])


def test_a_best_that_is_gone_or_never_was_is_told(tmp_path):
    result = fit(giving("score", [0.9, 0.2]), 2, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(kdengine.CheckpointError, match=r"at step 4 \(epoch 1\), but the checkpoint .* is gone"):
        result.load_best(mlp())
    fit(None, 1, out=tmp_path / "none")
    with pytest.raises(kdengine.CheckpointError, match="no best student"):
        kdengine.load_run(tmp_path / "none").student(best=True)
    with pytest.raises(kdengine.ConfigurationError, match="Engine\\(out=\\)"):
        fit(giving("score", [0.9]), 1).load_best(mlp())


def test_a_best_that_is_the_last_outlives_its_checkpoint(tmp_path):
    fit(giving("score", [0.2, 0.9]), 2, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    run = kdengine.load_run(tmp_path / "run")
    assert torch.equal(run.student(best=True)["0.weight"], run.student()["0.weight"])
