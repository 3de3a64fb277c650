"""A step that a callback asks for is one more of the fit, and leaves what the fit reports as it should be."""

from __future__ import annotations

import json
import math

import pytest
import torch

import kdengine
from kdengine.losses import KD
from tests.engine.common import engine, flat, items, mlp


def loader():
    return kdengine.loader(items(), 8)


class Further:
    """Trains further steps from a hook, each time that ``due`` says so, and keeps what they return."""

    kdengine_hook_version = 1

    def __init__(self, due=lambda step: True) -> None:
        self.due, self.values, self.nested, self.contexts, self.trained = due, [], False, [], None

    def act(self, context):
        if self.nested or not self.due(context.step):
            return
        self.nested = True
        try:
            self.values.append(self.trained.train_step([items()[8:16]]))
        finally:
            self.nested = False

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        before = context.step, context.batch
        self.act(context)
        assert (context.step, context.batch) == before


def fitted(tmp_path, plugin, epochs=2, **options):
    records = []
    plugin.trained = engine(mlp(), plugins=[plugin], out=tmp_path / "run", loggers=[], seed=0, **options)
    plugin.trained.loggers = [lambda record, step: records.append({"step": step, **record})]
    result = plugin.trained.fit(loader(), epochs=epochs)
    lines = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    return result, records, lines


def test_the_means_of_records_and_epochs_hold_every_step_once(tmp_path):
    result, records, steps = fitted(tmp_path, Further(), log_every=4)
    assert [step["step"] for step in steps] == list(range(1, 17))
    train = [record for record in records if record.get("items_per_second")]
    assert [record["step"] for record in train] == [4, 8, 12, 16]
    for at, record in enumerate(train):
        own = steps[4 * at : 4 * at + 4]
        assert record["loss"] == pytest.approx(sum(step["loss"] for step in own) / 4, rel=1e-5)
    for epoch, record in enumerate(result.history):
        own = steps[8 * epoch : 8 * epoch + 8]
        assert record["kd"] == pytest.approx(sum(step["kd"] for step in own) / 8, rel=1e-5)
    assert result.steps == 16


def test_it_returns_the_values_of_its_own_step(tmp_path):
    plugin = Further()
    _, _, steps = fitted(tmp_path, plugin)
    assert [values["loss"] for values in plugin.values] == pytest.approx([step["loss"] for step in steps[1::2]])


def test_a_record_and_a_checkpoint_that_fall_on_a_further_step_come_after_it(tmp_path):
    plugin = Further(due=lambda step: step % 5 == 4)  # after the steps 5 and 10
    _, records, _ = fitted(tmp_path, plugin, epochs=3, log_every=5, checkpoint_every=5, keep=9)
    train = [record["step"] for record in records if record.get("items_per_second")]
    assert train == [6, 11]
    written = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert {"step-00000006", "step-00000011"} <= set(written)


def test_a_step_in_the_middle_of_a_step_is_refused():
    class Middle(Further):
        @kdengine.hookimpl
        def kdengine_on_backward_end(self, context):
            self.act(context)

        kdengine_on_step_end = None

    plugin = Middle()
    plugin.trained = engine(plugins=[plugin])
    with pytest.raises(kdengine.PluginError, match=r"in the middle of a step.*kdengine_on_step_end"):
        plugin.trained.fit(loader(), epochs=1)


def test_after_a_step_that_failed_the_next_one_can_be_taken():
    trained = engine(losses={"kd": KD()}, weights={})
    bad = torch.full((8, 12), math.nan)
    with pytest.raises(kdengine.NonFiniteError):
        trained.train_step([bad])
    assert math.isfinite(trained.train_step([items()[:8]])["loss"])


def test_outside_of_a_fit_each_call_returns_its_own_values():
    student = mlp()
    trained = engine(student, losses={"kd": KD()}, weights={})
    batches = [items()[:8], items()[8:16]]
    for batch in batches:
        with torch.no_grad():
            expected = engine(student, losses={"kd": KD()}, weights={}).objective(batch).item()
        before = flat(student)
        assert trained.train_step([batch])["loss"] == pytest.approx(expected, rel=1e-5)
        assert not torch.equal(flat(student), before)
