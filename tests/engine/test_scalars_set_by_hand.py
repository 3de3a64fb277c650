"""What a user sets is what counts: a number ends a schedule, a schedule begins at the next step."""

from __future__ import annotations

import pytest
import torch

import kdengine
from kdengine.losses import CE, KD
from kdengine.teachers.peer import Peer
from tests.engine.common import engine, items, mlp


def loader():
    return kdengine.loader(items(), 8)


class At:
    """Does something after a step, and notes a value at every one."""

    kdengine_hook_version = 1

    def __init__(self, step, act, read=lambda context: None) -> None:
        self.step, self.act, self.read, self.seen = step, act, read, []

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        self.seen.append(self.read(context))
        if context.step + 1 == self.step:
            self.act(context)


def temperature(context):
    return context.fit.losses["kd"].temperature


def test_a_number_ends_a_schedule_for_good():
    loss = KD(temperature=kdengine.Linear(8.0, 4.0))
    loss.temperature = 2.0
    assert loss.schedules == {}
    plugin = At(0, None, temperature)
    engine(losses={"kd": loss}, weights={}, plugins=[plugin]).fit(loader(), epochs=1)
    assert plugin.seen == [2.0] * 4


def test_a_deleted_attribute_takes_its_schedule_along():
    loss = KD(temperature=kdengine.Linear(8.0, 4.0))
    del loss.temperature
    assert loss.schedules == {}


def test_a_number_set_in_the_middle_of_a_fit_counts_from_the_next_step_on():
    def act(context):
        context.fit.losses["kd"].temperature = 3.0

    plugin = At(2, act, temperature)
    losses = {"kd": KD(temperature=kdengine.Linear(8.0, 5.0))}
    engine(losses=losses, weights={}, plugins=[plugin]).fit(loader(), epochs=1)
    assert plugin.seen == [8.0, 7.0, 3.0, 3.0]


def test_a_schedule_set_in_the_middle_of_a_fit_runs_from_the_next_step_on():
    def act(context):
        context.fit.losses["kd"].temperature = kdengine.Linear(8.0, 5.0)

    plugin = At(1, act, temperature)
    engine(losses={"kd": KD(temperature=2.0)}, weights={}, plugins=[plugin]).fit(loader(), epochs=1)
    assert plugin.seen == pytest.approx([2.0, 7.0, 6.0, 5.0])


def weigh(trained, label, value):
    return lambda context: trained.weights.__setitem__(label, value)


def test_a_weight_set_in_the_middle_of_a_fit_counts_from_the_next_step_on():
    plugin = At(2, lambda context: plugin.change(context))
    records = []
    trained = engine(plugins=[plugin], weights={"kd": 1.0, "ce": kdengine.Linear(1.0, 0.5)}, log_every=1)
    trained.loggers = [lambda record, step: records.append(record)]
    plugin.change = lambda context: trained.weights.update(kd=0.25, ce=2.0)
    trained.fit(loader(), epochs=1)
    for step, (kd, ce) in enumerate([(1.0, 1.0), (1.0, 1 - 0.5 / 3), (0.25, 2.0), (0.25, 2.0)]):
        record = records[step]
        assert record["loss"] == pytest.approx(kd * record["kd"] + ce * record["ce"], rel=1e-5)
    assert "weights.ce" in records[1]
    assert "weights.ce" not in records[2]


def test_a_schedule_in_a_weights_place_runs_from_the_next_step_on():
    plugin = At(2, lambda context: plugin.change(context))
    trained = engine(plugins=[plugin], weights={"kd": 1.0, "ce": 0.0}, log_every=1)
    records = []
    trained.loggers = [lambda record, step: records.append(record)]
    plugin.change = lambda context: trained.weights.update(kd=kdengine.Linear(3.0, 0.0))
    trained.fit(loader(), epochs=1)
    assert [record.get("weights.kd") for record in records[:4]] == [None, None, 1.0, 0.0]


def test_a_peer_follows_the_weights_of_the_student():
    plugin = At(2, lambda context: plugin.change(context))
    records = []
    trained = engine(mlp(), Peer(mlp(16)), plugins=[plugin], weights={"kd": 1.0, "ce": 1.0}, log_every=1)
    trained.loggers = [lambda record, step: records.append(record)]
    plugin.change = lambda context: trained.weights.update(kd=0.0)
    trained.fit(loader(), epochs=1)
    last = records[3]
    assert last["loss"] == pytest.approx(last["ce"] + last["peer_ce"], rel=1e-5)


def test_a_weight_of_no_loss_is_refused_where_it_is_set_later_too():
    plugin = At(1, lambda context: plugin.change(context))
    trained = engine(plugins=[plugin])
    plugin.change = lambda context: trained.weights.update(kb=0.5)
    with pytest.raises(kdengine.ConfigurationError, match="weights names 'kb', which is no loss; known"):
        trained.fit(loader(), epochs=1)


def test_a_foreign_loop_sees_weights_and_losses_as_they_are_now():
    student, teacher = mlp(), mlp(32)
    batch = items()[:8]
    trained = engine(student, teacher, losses={"kd": KD(), "ce": CE()}, weights={"kd": 1.0, "ce": 0.0})
    with torch.no_grad():
        kd = trained.objective(batch).item()
        trained.weights["kd"] = 0.5
        assert trained.objective(batch).item() == pytest.approx(0.5 * kd, rel=1e-6)
        trained.weights = {"kd": 0.25, "ce": 0.0}
        assert trained.objective(batch).item() == pytest.approx(0.25 * kd, rel=1e-6)
        trained.losses["kd"] = KD(temperature=9.0)
        expected = engine(student, teacher, losses=[KD(temperature=9.0)], weights={}).objective(batch).item()
        assert trained.objective(batch).item() == pytest.approx(0.25 * expected, rel=1e-6)
