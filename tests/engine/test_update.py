"""A loss or gradient that is not finite never reaches the weights."""

from __future__ import annotations

import math

import pytest
import torch

import kdengine
from kdengine.engine.update import find_nonfinite
from kdengine.losses import CE, KD
from tests.engine.common import INPUTS, engine, flat, items, mlp
from tests.engine.several import device, in_processes


class Poison(kdengine.Loss):
    """Becomes NaN at one step."""

    def __init__(self, at: int, backward_only: bool = False) -> None:
        super().__init__()
        self.at = at
        self.backward_only = backward_only
        self.calls = 0

    def per_item(self, batch):
        self.calls += 1
        values = batch.student.logits.square().mean(-1)
        if self.calls - 1 != self.at:
            return values
        if self.backward_only:
            return values + (batch.student.logits[:, 0] * 0).sqrt()
        return values * math.nan


def poisoned(at: int, student, backward_only: bool = False, **options):
    losses = {"poison": Poison(at, backward_only), "ce": CE()}
    return engine(student, losses=losses, weights={}, **options)


@pytest.mark.parametrize("backward_only", [False, True], ids=["loss", "gradient alone"])
def test_raise_names_the_term_and_the_step_and_leaves_the_weights_before_it(backward_only):
    healthy, student = mlp(), mlp()
    loader = [items()[:8], items()[8:16], items()[16:24]]
    poisoned(99, healthy).fit(loader[:1], epochs=1)
    with pytest.raises(kdengine.NonFiniteError) as caught:
        poisoned(1, student, backward_only).fit(loader, epochs=1)
    assert "step 2" in str(caught.value)
    assert ("gradient" if backward_only else "poison") in str(caught.value)
    assert torch.equal(flat(healthy), flat(student))


def test_skip_leaves_out_the_update_and_goes_on():
    student = mlp()
    result = poisoned(1, student, nonfinite="skip").fit([items()[:8]] * 4, epochs=1)
    assert (result.steps, result.skipped) == (4, 1)
    assert torch.isfinite(flat(student)).all()
    assert math.isfinite(result.history[0]["loss"])


def test_rollback_returns_to_the_last_checkpoint(tmp_path):
    student, seen = mlp(), {}

    class Watch:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_checkpoint_saved(self, context):
            seen.setdefault(context.step, flat(student))

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            if context.step == 3:
                seen["after"] = flat(student)

    result = poisoned(
        3, student, nonfinite="rollback", out=tmp_path / "run", checkpoint_every=2, plugins=[Watch()]
    ).fit([items()[:8]] * 6, epochs=1)
    assert torch.equal(seen["after"], seen[2])
    assert (result.steps, result.skipped) == (6, 1)


def test_a_weight_of_zero_is_not_reported_as_a_value():
    records = []
    engine(weights={"kd": 0.0, "ce": 1.0}, loggers=[lambda record, step: records.append(record)], log_every=1).fit(
        [items()[:8]], epochs=1
    )
    assert "kd" not in records[0]
    assert records[0]["loss"] == pytest.approx(records[0]["ce"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_element_in_any_gradient_is_found(value):
    gradients = [torch.zeros(5), torch.zeros(3, dtype=torch.float64), torch.zeros(2)]
    found = torch.zeros(())
    find_nonfinite(gradients, found)
    assert found.item() == 0
    gradients[1][2] = value
    find_nonfinite(gradients, found)
    assert found.item() == 1


def test_clipping_covers_the_losses_own_parameters():
    norms = []

    class Watch:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_optimizer_step(self, context):
            total = sum(p.grad.square().sum() for group in context.fit.optimizer.param_groups for p in group["params"])
            norms.append((float(total) ** 0.5, float(context.gradient_norm)))

    engine(losses={"kd": KD(), "ce": CE()}, weights={"ce": 100.0}, clip=0.5, plugins=[Watch()]).fit(
        [(torch.randn(8, INPUTS), torch.zeros(8, dtype=torch.long))], epochs=1
    )
    after, before = norms[0]
    assert before > 0.5
    assert after == pytest.approx(0.5, rel=1e-4)


def with_bad_item(position, value=math.nan):
    inputs, labels = items()[:]
    inputs = inputs.clone()
    inputs[position] = value
    return torch.utils.data.TensorDataset(inputs, labels)


def message_about(data, **options):
    with pytest.raises(kdengine.NonFiniteError) as caught:
        engine(**options).fit(kdengine.loader(data, 8, seed=2), epochs=1)
    return str(caught.value)


def test_the_message_names_the_item_the_term_and_its_class():
    said = message_about(with_bad_item(13))
    assert "kdengine.losses.logits.kd.KD" in said
    for what in ("inputs", "the teacher's logits", "the student's logits", "kd", "ce"):
        assert f"{what} of items 13 of the data set" in said


def test_the_items_of_a_poisoned_term_are_named_where_models_are_fine():
    class Odd(kdengine.Loss):
        def per_item(self, batch):
            return torch.where(batch.index == 5, math.inf, batch.student.logits.square().mean(-1))

    said = message_about(items(), losses={"odd": Odd()}, weights={})
    assert "odd of items 5 of the data set" in said
    assert "logits" not in said


def test_a_gradient_that_overflows_names_its_parameters():
    said = message_about(items(), losses={"poison": Poison(1, backward_only=True)}, weights={})
    assert "the gradient of 0.weight" in said


def shared_message(strategy):
    return message_about(with_bad_item(13), device=device(), strategy=strategy)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_every_process_names_the_one_that_holds_the_item(strategy):
    said = in_processes(2, shared_message, strategy)
    assert said[0] == said[1]
    assert said[0].count("inputs of items 13 of the data set") == 1
    assert ("process 0: inputs" in said[0]) != ("process 1: inputs" in said[0])


def test_a_gradient_that_is_never_finite_under_fp16_is_said_long_before_the_loss_scale_is_gone():
    class Broken(kdengine.Loss):
        def per_item(self, batch):
            return batch.student.logits.square().mean(-1) + (batch.student.logits[:, 0] * 0).sqrt()

    options = {"losses": {"broken": Broken()}, "weights": {}, "precision": "fp16"}
    with pytest.raises(kdengine.NonFiniteError, match=r"gradient is not finite at step 25 .*0\.weight"):
        engine(**options).fit([items()[:8]] * 200, epochs=1)
    student = mlp()
    before = flat(student).clone()
    result = engine(student, **options, nonfinite="skip").fit([items()[:8]] * 200, epochs=1)
    assert (result.steps, result.skipped) == (200, 176)
    assert torch.equal(flat(student), before)


def test_overflow_that_a_smaller_loss_scale_mends_is_no_fault():
    student = mlp()
    before = flat(student).clone()
    result = engine(student, weights={"kd": 1e4, "ce": 1e4}, precision="fp16", clip=1.0, nonfinite="raise").fit(
        [items()[:8]] * 30, epochs=1
    )
    assert result.skipped == 0
    assert not torch.equal(flat(student), before)
