"""Any split of an optimizer step gives the same gradient; every D is what it should be."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdengine
from kdengine.api import ConfigurationError
from kdengine.losses import CE, KD, Hint
from tests.engine.common import CLASSES, INPUTS, engine, flat, mlp

ITEMS = 30


def unevenly_labelled() -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, CLASSES, (ITEMS,), generator=generator)
    labels[::3] = -100
    return torch.utils.data.TensorDataset(torch.randn(ITEMS, INPUTS, generator=generator, dtype=torch.float64), labels)


LOSSES = {
    "kd": lambda: {"kd": KD(3.0)},
    "kd with ignored labels": lambda: {"kd": KD(3.0, hard_weight=0.5)},
    "a feature loss with a projector": lambda: {"hint": Hint(student="1", teacher="1")},
    "a sum of terms with different masks": lambda: {"kd": KD(3.0, hard_weight=0.5), "ce": CE(label_smoothing=0.1)},
}


def update(losses, sizes: list[int]) -> torch.Tensor:
    """What one optimizer step over micro-batches of these sizes makes of the student."""
    student = mlp(dtype=torch.float64)
    trained = engine(
        student,
        mlp(32, dtype=torch.float64),
        losses=losses,
        weights={},
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=1.0),
        seed=0,
    )
    data = unevenly_labelled()[:]
    parts = torch.arange(ITEMS).split(sizes)
    trained.train_step([tuple(tensor[part] for tensor in data) for part in parts])
    return flat(student)


@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("sizes", [[10, 10, 10], [7, 7, 7, 7, 2], [1] * 30, [29, 1]], ids=str)
def test_any_split_of_a_step_gives_the_same_update(losses, sizes):
    assert torch.allclose(update(losses(), sizes), update(losses(), [ITEMS]), rtol=0, atol=1e-12)


@given(cuts=st.lists(st.integers(1, ITEMS - 1), unique=True, max_size=6))
@settings(max_examples=15, deadline=None)
def test_random_splits_give_the_same_update(cuts):
    bounds = [0, *sorted(cuts), ITEMS]
    sizes = [b - a for a, b in pairwise(bounds)]
    losses = LOSSES["a sum of terms with different masks"]
    assert torch.allclose(update(losses(), sizes), update(losses(), [ITEMS]), rtol=0, atol=1e-12)


def test_a_ragged_last_window_is_divided_by_its_own_items():
    records = []
    data = unevenly_labelled()
    engine(
        mlp(dtype=torch.float64),
        mlp(32, dtype=torch.float64),
        losses={"kd": KD(1.0)},
        weights={},
        accumulate=4,
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.0),
        loggers=[lambda record, step: records.append(record["kd"])],
        log_every=1,
    ).fit(kdengine.loader(data, 5, shuffle=False), epochs=1)
    student, teacher = mlp(dtype=torch.float64), mlp(32, dtype=torch.float64)
    inputs = data[:][0]
    rows = torch.nn.functional.kl_div(
        student(inputs).log_softmax(-1), teacher(inputs).log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert records == pytest.approx([rows[:20].mean().item(), rows[20:].mean().item()], rel=1e-9)


def test_a_step_without_a_labelled_item_costs_nothing_and_breaks_nothing():
    student = mlp()
    before = flat(student)
    values = engine(student, losses={"ce": CE()}, weights={}).train_step(
        [(torch.randn(4, INPUTS), torch.full((4,), -100))]
    )
    assert values["loss"] == 0.0
    assert torch.equal(before, flat(student))


def test_a_masked_item_counts_nowhere_even_when_it_is_nan():
    inputs, labels = torch.randn(6, INPUTS), torch.randint(0, CLASSES, (6,))
    padded = torch.cat([inputs, torch.full((2, INPUTS), float("nan"))])
    mask = torch.tensor([True] * 6 + [False] * 2)
    plain, with_padding = mlp(), mlp()
    engine(plain).train_step([(inputs, labels)])
    batch = kdengine.Batch(padded, torch.cat([labels, torch.zeros(2, dtype=torch.long)]), mask=mask)
    values = engine(with_padding, losses={"kd": KD(2.0), "ce": CE()}).objective(batch, student=with_padding)
    assert torch.isfinite(values)


def test_a_loss_of_batch_scope_is_combined_by_item_counts():
    class Relational(kdengine.Loss):
        scope = "batch"

        def value(self, batch):
            return batch.student.logits.square().mean()

    records = []
    trained = engine(
        losses={"relational": Relational()},
        weights={"relational": 2.0},
        loggers=[lambda record, step: records.append(record)],
        log_every=1,
        accumulate=2,
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.0),
    )
    parts = [(torch.randn(6, INPUTS), torch.zeros(6)), (torch.randn(2, INPUTS), torch.zeros(2))]
    trained.fit(parts, epochs=1)
    values = [mlp()(inputs).square().mean().item() for inputs, _ in parts]
    assert records[0]["relational"] == pytest.approx((6 * values[0] + 2 * values[1]) / 8, rel=1e-6)
    assert records[0]["loss"] == pytest.approx(2 * records[0]["relational"])


class Spread(kdengine.Loss):
    """A loss of two relations, with a parameter of its own."""

    scope = "batch"
    terms = ("far", "near")

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def value(self, batch):
        distances = torch.cdist(batch.student.logits, batch.student.logits) * self.factor
        return {"far": distances.max(), "near": distances.sum(dim=1).min()}


def masked(inputs, mask):
    return kdengine.Batch(inputs, torch.zeros(len(inputs), dtype=torch.long), mask=torch.tensor(mask))


def test_a_loss_of_batch_scope_sees_the_items_that_count_only():
    inputs = torch.randn(4, INPUTS)
    padded = torch.cat([inputs[:2], torch.full((3, INPUTS), float("nan")), inputs[2:]])
    batch = masked(padded, [True, True, False, False, False, True, True])
    got = engine(losses={"spread": Spread()}, weights={}).objective(batch)
    far, near = Spread().value(SimpleNamespace(student=SimpleNamespace(logits=mlp()(inputs)))).values()
    torch.testing.assert_close(got, far + near)


def test_a_loss_of_batch_scope_over_no_items_is_zero_with_a_gradient_of_zero():
    student, loss = mlp(), Spread()
    total = engine(student, losses={"spread": loss}, weights={}).objective(masked(torch.randn(3, INPUTS), [False] * 3))
    total.backward()
    assert float(total.detach()) == 0.0
    assert all(bool((p.grad == 0).all()) for p in (*student.parameters(), *loss.parameters()))


def test_a_loss_of_batch_scope_has_one_mask_for_all_its_terms():
    class PerTerm(Spread):
        def valid(self, batch):
            return {"far": None, "near": torch.tensor([True] * 3)}

    with pytest.raises(ConfigurationError, match=r"PerTerm.valid returned a dict .* one bool tensor"):
        engine(losses={"spread": PerTerm()}, weights={}).objective(masked(torch.randn(3, INPUTS), [True] * 3))


class Costly(kdengine.Loss):
    """Counts how often it is computed, by a network of its own; what it gives is no number unless told."""

    def __init__(self, bank: bool = False, over: float = 0.0) -> None:
        super().__init__()
        self.computed, self.over = 0, over
        self.project = torch.nn.Linear(CLASSES, CLASSES)
        if bank:
            self.register_buffer("bank", torch.zeros(CLASSES))

    def per_item(self, batch):
        self.computed += 1
        return self.project(batch.student.logits).square().mean(-1) / self.over


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_of_weight_0_is_not_computed_and_gives_a_gradient_of_0(precision):
    costly, student = Costly(), mlp()
    trained = engine(student, losses={"costly": costly, "ce": CE()}, weights={"costly": 0.0}, precision=precision)
    trained.objective((torch.randn(4, INPUTS), torch.arange(4))).backward()
    assert costly.computed == 0
    assert all(bool((parameter.grad == 0).all()) for parameter in costly.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())
    assert any(bool((parameter.grad != 0).any()) for parameter in student.parameters())


def test_a_loss_of_weight_0_leaves_the_update_as_it_would_be_without_it():
    def train(losses, weights):
        student = mlp()
        engine(student, losses=losses, weights=weights).fit([(torch.ones(4, INPUTS), torch.arange(4))] * 3, epochs=1)
        return flat(student)

    expected = train({"kd": KD()}, {})
    assert torch.equal(train({"kd": KD(), "costly": Costly()}, {"costly": 0.0}), expected)


def test_a_loss_that_remembers_is_computed_at_weight_0():
    costly = Costly(bank=True)
    trained = engine(losses={"costly": costly, "kd": KD()}, weights={"costly": 0.0})
    trained.objective(torch.randn(4, INPUTS))
    assert costly.computed == 1


def test_a_loss_comes_and_goes_with_its_weight():
    costly = Costly(over=1.0)
    stages = kdengine.Piecewise([[0.0, 0.0], [0.5, 1.0]], interpolation="constant")
    data = [torch.randn(4, INPUTS)] * 6
    history = engine(losses={"costly": costly, "kd": KD()}, weights={"costly": stages}).fit(data, epochs=2).history
    assert "costly" not in history[0]
    assert history[1]["costly"] > 0.0
    assert costly.computed == 6


def test_schedules_move_arguments_and_weights_at_every_step():
    records = []
    engine(
        losses={"kd": KD(temperature=kdengine.Linear(4.0, 1.0))},
        weights={"kd": kdengine.Linear(1.0, 0.0)},
        loggers=[lambda record, step: records.append((record["kd.temperature"], record["weights.kd"]))],
        log_every=1,
    ).fit([(torch.randn(4, INPUTS), torch.zeros(4, dtype=torch.long))] * 4, epochs=1)
    temperatures, weights = zip(*records, strict=True)
    assert temperatures == pytest.approx((4.0, 3.0, 2.0, 1.0))
    assert weights == pytest.approx((1.0, 2 / 3, 1 / 3, 0.0))
