"""Evaluation leaves modes and random state as it found them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.modes import evaluation_mode
from tests.engine.common import engine, items, mlp


def test_each_module_returns_to_the_mode_that_it_had():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    module[0].eval()
    with evaluation_mode(module):
        assert not module[1].training
    assert (module.training, module[0].training, module[1].training) == (True, False, True)


def test_how_often_one_evaluates_changes_nothing_in_training():
    results = []
    for every in (1, 3):
        student = mlp(dropout=0.5)
        engine(student, seed=0, evaluate_every=every, metrics={"top1": "top1"}, gradient_shares=every == 1).fit(
            torch.utils.data.DataLoader(items(), 8, shuffle=True),
            torch.utils.data.DataLoader(items(), 8, shuffle=True),
            epochs=3,
        )
        results.append(student.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_moving_average_is_what_is_evaluated_and_exported(tmp_path):
    student, seen = mlp(), []
    engine(student, ema=0.9, out=tmp_path / "run").fit(
        kdengine.loader(items(), 8), lambda model: seen.append(model) or {"x": 1.0}, epochs=1
    )
    assert seen[0] is not student
    exported = kdengine.load_run(tmp_path / "run").student()
    assert all(torch.equal(value, exported[name]) for name, value in seen[0].state_dict().items())


def test_shares_of_the_gradient_sum_to_one_and_follow_the_weights():
    records = []

    class Listener(kdengine.Logger):
        def log(self, record, *, step, kind):
            if kind == "evaluate":
                records.append(record)

    engine(weights={"kd": 1.0, "ce": 0.0}, gradient_shares=True, loggers=[Listener()], metrics={"top1": "top1"}).fit(
        kdengine.loader(items(), 8), kdengine.loader(items(), 8), epochs=1
    )
    shares = {name: value for name, value in records[0].items() if name.startswith("gradient_share.")}
    assert shares == {"gradient_share.kd": pytest.approx(1.0), "gradient_share.ce": 0.0}


def test_the_best_evaluation_follows_the_monitored_metrics_direction():
    values = iter([0.3, 0.1, 0.2])

    class Falling(kdengine.Metric):
        higher_is_better = False

        def reset(self):
            pass

        def update(self, batch):
            pass

        def compute(self):
            return next(values)

    result = engine(metrics={"falling": Falling()}).fit(
        kdengine.loader(items(), 8), kdengine.loader(items(), 8), epochs=3
    )
    assert (result.best["value"], result.best["epoch"]) == (0.1, 2)


def test_an_empty_evaluation_loader_and_an_unknown_monitor_are_refused():
    with pytest.raises(kdengine.ConfigurationError, match="yielded no batch"):
        engine(metrics={"top1": "top1"}).fit(kdengine.loader(items(), 8), [], epochs=1)
    with pytest.raises(kdengine.ConfigurationError, match="monitor 'top2'"):
        engine(metrics={"top1": "top1"}, monitor="top2").fit(
            kdengine.loader(items(), 8), kdengine.loader(items(), 8), epochs=1
        )


def test_an_object_with_update_compute_and_reset_is_a_metric():
    class Counter:
        def reset(self):
            self.items = 0

        def update(self, logits, labels):
            self.items += len(labels)

        def compute(self):
            return self.items

    assert engine(metrics={"items": Counter()}).fit(
        kdengine.loader(items(), 8), kdengine.loader(items(), 5), epochs=1
    ).metrics == {"items": 32.0}
