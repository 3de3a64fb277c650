"""Two runs are the same step by step, or part at a step that is named."""

from __future__ import annotations

import json

import pytest
import torch

import kdengine
from kdengine.engine.compare import compare, fits
from kdengine.losses import CE, KD
from tests.engine.common import engine, items, mlp
from tests.engine.several import device, in_processes


def run(out, *, seed=1, data_seed=2, lr=0.1, workers=0, epochs=2, **options):
    defaults = {"optimizer": lambda named: torch.optim.SGD([p for _, p in named], lr=lr), "accumulate": 2}
    trained = engine(mlp(dropout=options.pop("dropout", 0.2)), out=out, seed=seed, **{**defaults, **options})
    trained.fit(kdengine.loader(items(), 5, seed=data_seed, workers=workers), epochs=epochs, resume="auto")
    return out / "steps.jsonl"


def test_a_line_per_step_with_digest_losses_and_rate(tmp_path):
    lines = [json.loads(line) for line in run(tmp_path / "a").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert set(lines[0]) == {"step", "batch", "loss", "kd", "ce", "lr"}
    assert len({line["batch"] for line in lines}) == 8
    assert sum(len(line) for line in run(tmp_path / "b").read_text().splitlines()) < 8 * 160


def test_equal_runs_are_equal_whatever_their_workers(tmp_path):
    found = compare(run(tmp_path / "a"), run(tmp_path / "b", workers=1))
    assert (found.steps, found.first) == ((8, 8), None)


@pytest.mark.parametrize(
    ("change", "step", "reason"),
    [
        ({"data_seed": 3}, 1, "other items"),
        ({"seed": 2}, 1, "items are the same"),
        ({"lr": 0.2}, 1, "learning rate"),
        ({"losses": {"kd": KD(kdengine.Step(2.0, 0.5, every=1)), "ce": CE()}}, 5, "items are the same"),
    ],
)
def test_the_first_difference_is_named_with_its_reason(tmp_path, change, step, reason):
    found = compare(run(tmp_path / "a"), run(tmp_path / "b", **change))
    assert found.first is not None
    assert (found.first.step, reason in found.first.reason) == (step, True)


def test_numbers_within_the_tolerance_are_the_same(tmp_path):
    left, right = run(tmp_path / "a"), run(tmp_path / "b", lr=0.1 + 1e-9)
    assert compare(left, right).first is not None
    assert compare(left, right, tolerance=1e-6).first is None


def shared_run(out):
    run(out, device=device(), dropout=0.0)


def test_two_processes_see_the_items_of_one(tmp_path):
    in_processes(2, shared_run, tmp_path / "two")
    found = compare(run(tmp_path / "one", dropout=0.0), tmp_path / "two" / "steps.jsonl", tolerance=1e-6)
    assert (found.steps, found.first) == ((8, 8), None)


class Stop:
    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        if context.step == 6:
            raise KeyboardInterrupt


def test_a_resume_cuts_the_record_back_to_its_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", plugins=[Stop()])
    found = compare(run(tmp_path / "cut"), run(tmp_path / "whole"))
    assert (found.steps, found.first) == ((8, 8), None)


def test_a_value_that_is_no_number_is_a_string_and_a_missing_field_a_difference(tmp_path):
    for name, line in (("a", '{"step": 1, "loss": "nan"}'), ("b", '{"step": 1, "loss": "nan", "kd": 1.0}')):
        (tmp_path / name).write_text(line + "\n" + '{"step": "torn')
    assert compare(tmp_path / "a", tmp_path / "a").first is None
    assert compare(tmp_path / "a", tmp_path / "b").first.values == {"kd": (None, 1.0)}


def test_a_directory_without_steps_is_no_run(tmp_path):
    with pytest.raises(kdengine.CheckpointError, match=r"no steps\.jsonl"):
        fits(tmp_path)
