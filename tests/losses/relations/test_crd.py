import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdengine
from kdengine.api import ConfigurationError, memory
from kdengine.engine import checkpoint
from kdengine.losses import CE, CRD
from kdengine.losses.relations.bank import Bank
from kdengine.losses.relations.negatives import count_negatives
from kdengine.testing import check_loss
from kdengine.testing.run import perceptron
from tests.engine.common import StopAt, engine, flat, items, mlp
from tests.engine.several import in_processes

from ..outputs import batch_of, logits
from .common import AWKWARD, course, features

ITEMS = 9
SMALL = {"items": ITEMS, "feat_dim": 4, "nce_k": 7}


def indexed(student, teacher, index=None, mask=None):
    batch = batch_of(student, teacher, mask=mask)
    batch.index = torch.arange(len(student)) if index is None else torch.as_tensor(index)
    return batch


def made(dtype=torch.float64, **options):
    """A loss that is set up, always with the same parameters and banks."""
    torch.manual_seed(3)
    loss = CRD(**{**SMALL, **options})
    loss.setup(indexed(logits(4).float(), logits(4, seed=1).float()))
    return loss.to(dtype)


def embed(linear, row):
    """The linear map of one item, divided by its length."""
    mapped = [sum(w * x for w, x in zip(weights, row, strict=True)) + bias
              for weights, bias in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)]  # fmt: skip
    size = math.hypot(*mapped)
    return [value / size for value in mapped]


def inner(one, other):
    return sum(x * y for x, y in zip(one, other, strict=True))


def expected(loss, batch):
    """-log h of the positive and -log(1 - h) of every negative, with either model as the anchor; Tian et al. 2020."""
    count, draws, temperature = loss.items, loss.nce_k, loss.nce_t
    negatives = count_negatives(loss.key, loss.steps, batch.index, count, draws, torch.float64).tolist()
    sides = [
        (loss.student_map, batch.student.logits, loss.teacher_bank, loss.log_z[0]),
        (loss.teacher_map, batch.teacher.logits, loss.student_bank, loss.log_z[1]),
    ]
    values = [0.0] * len(negatives)
    for linear, given, bank, log_z in sides:
        rows, z = bank.embeddings.tolist(), count * math.exp(float(log_z))
        for at, (own, item) in enumerate(zip(batch.index.tolist(), given.tolist(), strict=True)):
            anchor = embed(linear, item)

            def h(row, anchor=anchor, z=z):
                e = math.exp(inner(anchor, row) / temperature) / z
                return e / (e + draws / count)

            values[at] -= math.log(h(rows[own]))
            values[at] -= sum(times * math.log(1 - h(row)) for times, row in zip(negatives[at], rows, strict=True))
    return values


@pytest.mark.parametrize(
    "options",
    [{}, {"nce_k": 40}, {"nce_t": 0.5}, {"momentum": 0.0}, {"pool": True}, {"student": "a", "teacher": "b"}],
    ids=str,
)
def test_the_kit_accepts_every_option(options):
    check_loss(CRD, **{**SMALL, **options})


@pytest.mark.parametrize(("student", "teacher"), [((6,), (8,)), ((2, 3, 3), (4, 2, 2)), ((3, 4), (2, 5))])
def test_the_kit_accepts_features_of_any_shapes(student, teacher):
    check_loss(CRD, sample=features(student, teacher), **SMALL, student="hidden", teacher="hidden")


@pytest.mark.parametrize("options", [{}, {"nce_t": 0.5, "nce_k": 30}, {"feat_dim": 16}], ids=str)
def test_per_item_is_the_sum_over_positive_and_negatives_of_both_anchors(options):
    loss, batch = made(**options), indexed(logits(5), logits(5, seed=1), [8, 0, 3, 1, 7])
    assert loss.per_item(batch).tolist() == pytest.approx(expected(loss, batch), rel=1e-9)
    loss.end_step()
    assert loss.per_item(batch).tolist() == pytest.approx(expected(loss, batch), rel=1e-9)


def test_z_is_the_mean_over_the_banks_as_they_begin():
    loss = made(nce_t=0.3)
    sides = (loss.student_bank, loss.teacher_bank), (loss.teacher_bank, loss.student_bank)
    for (one, other), log_z in zip(sides, loss.log_z.tolist(), strict=True):
        found = []
        for row in one.embeddings.tolist():
            anchor = [value / math.hypot(*row) for value in row]
            found += [math.exp(inner(anchor, other_row) / 0.3) for other_row in other.embeddings.tolist()]
        assert math.exp(log_z) == pytest.approx(sum(found) / len(found), rel=1e-5)


def test_z_is_nearly_that_of_a_first_batch():
    """The published code's constant: the mean over a first batch and its negatives, while the banks are random."""
    torch.manual_seed(0)
    loss = CRD(items=50_000)
    student, teacher = torch.randn(64, 20).relu(), torch.randn(64, 30).relu()
    loss.setup(indexed(student, teacher))
    sides = (loss.student_map, student, loss.teacher_bank), (loss.teacher_map, teacher, loss.student_bank)
    for (linear, given, bank), log_z in zip(sides, loss.log_z.tolist(), strict=True):
        anchors = nn.functional.normalize(linear(given).detach())
        first = (anchors @ bank.embeddings.T / 0.07).exp().mean()
        assert math.exp(log_z) == pytest.approx(float(first), rel=0.03)


def test_with_banks_of_another_size_the_noise_is_as_likely():
    """log h needs Z and M only as Z / M: a positive as near as the mean is as likely as each of K negatives."""
    loss = made(torch.float64, nce_k=1)
    loss.log_z.zero_()
    for bank in (loss.student_bank, loss.teacher_bank):
        bank.rows.zero_()
    values = loss.per_item(indexed(logits(5), logits(5, seed=1)))
    assert values.tolist() == pytest.approx([4 * math.log(2)] * 5)


def test_a_perfect_match_costs_less_than_a_swapped_one():
    loss, rows = made(items=5, nce_k=20), logits(5)
    for bank, linear in ((loss.student_bank, loss.student_map), (loss.teacher_bank, loss.teacher_map)):
        bank.rows[:5] = torch.tensor([embed(linear, row) for row in rows.tolist()]).double()
    linear, loss.teacher_map = loss.student_map, loss.student_map
    loss.teacher_bank.rows.copy_(loss.student_bank.rows)
    assert linear is loss.teacher_map
    right = loss.per_item(indexed(rows, rows)).sum()
    swapped = loss.per_item(indexed(rows.roll(1, 0), rows.roll(1, 0))).sum()
    assert right < swapped


# The banks


def test_the_rows_of_a_steps_items_move_towards_them():
    loss, batch = made(momentum=0.75), indexed(logits(3), logits(3, seed=1), [8, 0, 4])
    before = [bank.embeddings.clone() for bank in (loss.student_bank, loss.teacher_bank)]
    loss.per_item(batch)
    for bank, old in zip((loss.student_bank, loss.teacher_bank), before, strict=True):
        assert torch.equal(bank.embeddings, old)
    loss.end_step()
    outputs = (batch.student.logits, batch.teacher.logits)
    for bank, old, linear, rows in zip(
        (loss.student_bank, loss.teacher_bank), before, (loss.student_map, loss.teacher_map), outputs, strict=True
    ):
        wanted = old.tolist()
        for at, row in zip([8, 0, 4], rows.tolist(), strict=True):
            moved = [0.75 * a + 0.25 * b for a, b in zip(wanted[at], embed(linear, row), strict=True)]
            wanted[at] = [value / math.hypot(*moved) for value in moved]
        assert bank.embeddings.flatten().tolist() == pytest.approx([x for row in wanted for x in row], abs=1e-12)
    assert int(loss.steps) == 1


def test_banks_begin_with_random_rows_of_about_length_one():
    torch.manual_seed(0)
    rows = Bank(500, 64, torch.device("cpu")).embeddings
    assert rows.norm(dim=1).mean() == pytest.approx(1, abs=0.05)
    assert rows.mean() == pytest.approx(0, abs=0.01)
    assert Bank.size(500, 64) == 501 * 64 * 4


def test_nothing_is_kept_of_what_does_not_count_or_is_not_finite():
    bank = Bank(5, 2, torch.device("cpu"))
    before = bank.embeddings.clone()
    nan, new = math.nan, [0.6, 0.8]
    bank.remember(torch.tensor([5, 1, 5, 3]), torch.tensor([new, [nan, 0.0], [nan, nan], new]), 0.0)
    assert torch.equal(bank.embeddings[[0, 1, 2, 4]], before[[0, 1, 2, 4]])
    assert bank.embeddings[3].tolist() == pytest.approx(new)
    assert bank.rows.isfinite().all()
    assert not bank.rows[5].any()


def test_of_an_item_that_comes_twice_the_last_counts():
    bank = Bank(5, 2, torch.device("cpu"))
    bank.remember(torch.tensor([2, 4, 2]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 0.0)
    assert bank.embeddings[[2, 4]].tolist() == [[0.0, -1.0], [0.0, 1.0]]


def test_opposite_embeddings_of_equal_weight_leave_a_row_of_zeros():
    bank = Bank(2, 2, torch.device("cpu"))
    bank.rows[0] = torch.tensor([1.0, 0.0])
    bank.remember(torch.tensor([0]), torch.tensor([[-1.0, 0.0]]), 0.5)
    assert bank.embeddings[0].tolist() == [0.0, 0.0]


def test_items_that_do_not_count_may_have_any_position_and_are_not_remembered():
    mask = torch.tensor([True, False, True])
    loss, batch = made(), indexed(logits(3), logits(3, seed=1), [2, -1, 5], mask)
    before = loss.student_bank.embeddings.clone()
    assert loss.valid(batch) is None
    assert loss.per_item(batch).isfinite().all()
    loss.end_step()
    moved = (loss.student_bank.embeddings != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [2, 5]


@pytest.mark.parametrize("where", ["evaluation mode", "no gradient"])
def test_outside_of_training_nothing_is_noted(where):
    loss, batch = made(), indexed(logits(3), logits(3, seed=1))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.train(where != "evaluation mode")
    with torch.set_grad_enabled(where != "no gradient"):
        loss.per_item(batch)
    loss.end_step()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


# Numerics


@pytest.mark.parametrize("awkward", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("temperature", [0.07, 1e-3])
def test_awkward_items_give_a_finite_value_and_gradient(awkward, dtype, temperature):
    loss = made(torch.promote_types(dtype, torch.float32), nce_t=temperature)
    rows = awkward().to(dtype)
    other = logits(len(rows), seed=1).to(dtype)
    for pair in ((rows, other), (other, rows)):
        student, teacher = pair[0].clone().requires_grad_(), pair[1]
        for _ in range(3):
            values = loss.per_item(indexed(student, teacher))
            values.sum().backward()
            loss.end_step()
        assert values.isfinite().all()
        assert student.grad.isfinite().all()
        assert all(value.isfinite().all() for value in loss.state_dict().values())


def test_embeddings_of_zeros_are_finite():
    loss = made()
    nn.init.zeros_(loss.student_map.weight)
    nn.init.zeros_(loss.student_map.bias)
    student = logits(3).requires_grad_()
    loss.per_item(indexed(student, logits(3, seed=1))).sum().backward()
    loss.end_step()
    assert student.grad.isfinite().all()
    assert loss.student_bank.rows.isfinite().all()


def test_a_second_derivative_is_refused():
    student = logits(3).requires_grad_()
    total = made().per_item(indexed(student, logits(3, seed=1))).sum()
    with pytest.raises(RuntimeError, match="crd has no second derivative"):
        torch.autograd.grad(total, student, create_graph=True)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 1}, "crd: items must be a whole number of at least 2, got 1"),
        ({"feat_dim": 0}, "crd: feat_dim must be a whole number of at least 1, got 0"),
        ({"nce_k": 1.5}, "crd: nce_k must be a whole number of at least 1, got 1.5"),
        ({"nce_t": 0.0}, "crd: nce_t must be a finite number above 0, got 0.0"),
        ({"nce_t": kdengine.Linear(1.0, 0.1)}, "crd: nce_t must be a finite number above 0, got"),
        ({"momentum": 1.0}, "crd: momentum must be a finite number of at least 0 and below 1, got 1.0"),
        ({"student": "layer4"}, "crd: student='layer4' and teacher=None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        CRD(**{**SMALL, **options})


def test_several_pairs_are_refused():
    batch = features((3,), (3,))(4, torch.Generator())
    for output in (batch.student, batch.teacher):
        output.features = {"a": logits(4), "b": logits(4)}
    with pytest.raises(ConfigurationError, match=r"crd compares one pair of features, but .* name 2"):
        CRD(student=["a", "b"], teacher=["a", "b"], **SMALL).setup(batch)


def test_a_loader_without_positions_is_refused():
    made_engine = engine(losses={"crd": CRD(**SMALL)}, weights={})
    with pytest.raises(ConfigurationError, match=r"crd needs the items' index; use kdengine\.loader"):
        made_engine.fit(torch.utils.data.DataLoader(items(8), 4), epochs=1)


def test_a_position_outside_of_the_banks_is_refused():
    made_engine = engine(losses={"crd": CRD(**SMALL)}, weights={})
    with pytest.raises(ConfigurationError, match=r"banks of 9 items, .*expected 0 to 8: set items to the size"):
        made_engine.fit(kdengine.loader(items(32), 32), epochs=1)
    for index in ([-1, 2], [3, 9]):
        with pytest.raises(ConfigurationError, match=f"positions from {index[0]} to {index[1]}"):
            made().valid(indexed(logits(2), logits(2), index))


def test_banks_that_do_not_fit_are_refused_before_they_are_allocated():
    loss = CRD(items=10**13)
    with pytest.raises(ConfigurationError) as caught:
        loss.setup(indexed(logits(2), logits(2)))
    said = str(caught.value)
    assert "the loss crd: two memory banks of 10,000,000,000,000 items x 128 numbers" in said
    assert "10,240,000,000,001,024 bytes" in said
    assert "make feat_dim smaller" in said


def test_what_fits_is_compared_with_what_is_free(monkeypatch):
    wanted = 2 * Bank.size(ITEMS, 4)
    monkeypatch.setattr(memory, "free_memory", lambda device: wanted)
    made()
    monkeypatch.setattr(memory, "free_memory", lambda device: wanted - 1)
    with pytest.raises(ConfigurationError, match=f"would take {wanted} bytes"):
        made()


# Fits


def test_a_fit_lowers_it_and_trains_the_maps():
    loss = CRD(items=32, feat_dim=8, nce_k=16)
    losses = course(loss)
    assert losses[-1] < 0.9 * losses[0]
    assert int(loss.steps) == 24
    assert loss.student_bank.embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * 32, abs=1e-5)


def test_on_features_it_exports_the_student_alone(tmp_path):
    losses = course(CRD(items=32, feat_dim=8, nce_k=16, student="hidden", teacher="relu"), out=tmp_path / "run")
    assert losses[-1] < losses[0]
    assert set(load_file(tmp_path / "run" / "student.safetensors")) == set(perceptron(8).state_dict())


def step_over(sizes):
    """The student and the loss after optimizer steps over micro-batches of these sizes."""
    loss = CRD(items=30, feat_dim=8, nce_k=12)
    student = mlp(dtype=torch.float64)
    trained = engine(student, mlp(32, dtype=torch.float64), losses={"crd": loss}, weights={}, seed=0)
    inputs = items(30, torch.float64)[:][0]
    for step in range(4):
        order = torch.randperm(30, generator=torch.Generator().manual_seed(step))
        trained.train_step([kdengine.Batch(inputs[part], index=part) for part in order.split(sizes)])
    return flat(student).tolist(), {name: value.tolist() for name, value in loss.state_dict().items()}


@pytest.mark.parametrize("sizes", [[10, 10, 10], [29, 1], [7, 7, 7, 7, 2]], ids=str)
def test_any_split_of_a_step_gives_the_same_update_and_banks(sizes):
    found, state = step_over(sizes)
    expected, whole = step_over([30])
    assert found == pytest.approx(expected, abs=1e-10)
    assert torch.allclose(torch.tensor(state["teacher_bank.rows"]), torch.tensor(whole["teacher_bank.rows"]), atol=1e-6)
    assert state["steps"] == whole["steps"] == 4


def fit(out: Path, plugins=()):
    """A fit of 12 steps with evaluations that ask for gradient shares; its student, history and stored loss."""
    student = mlp(dropout=0.2)
    trained = engine(
        student, losses={"crd": CRD(items=32, feat_dim=8, nce_k=12), "ce": CE()}, weights={"crd": 0.1}, out=out, seed=1,
        plugins=plugins, checkpoint_every=2, accumulate=2, gradient_shares=True, metrics={"top1": "top1"},
    )  # fmt: skip
    data = items()
    evaluation = kdengine.loader(data, 16, shuffle=False)
    result = trained.fit(kdengine.loader(data, 4, seed=2), evaluation, epochs=3, resume="auto")
    stored, _ = checkpoint.load(max((out / "checkpoints").glob("step-*")))
    return flat(student), result.history, stored["losses"]


def checkpoint_steps(out):
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("crd") / "whole")


@pytest.mark.parametrize("at", [2, 7])
def test_stopped_after_a_step_and_resumed_gives_the_same_bits(tmp_path, at, never_stopped):
    whole, history, losses = never_stopped
    for step in (at, at + 2):
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "cut", plugins=[StopAt(step)])
        assert checkpoint_steps(tmp_path / "cut")[-1] == step // 2 * 2
    resumed, same_history, same_losses = fit(tmp_path / "cut")
    assert torch.equal(resumed, whole)
    assert same_history == history
    assert losses.keys() == same_losses.keys()
    assert {"crd.student_bank.rows", "crd.teacher_bank.rows", "crd.log_z", "crd.steps", "crd.key"} <= losses.keys()
    assert all(torch.equal(same_losses[name], value) for name, value in losses.items())


def of_all():
    """A fit whose last batch has one item, and none of them for a second process; its student and the loss's state."""
    loss = CRD(items=33, feat_dim=8, nce_k=12)
    student = mlp(dtype=torch.float64)
    trained = engine(student, mlp(32, dtype=torch.float64), losses={"crd": loss}, weights={}, seed=0, accumulate=2)
    trained.fit(kdengine.loader(items(33, torch.float64), 8, seed=2), epochs=3)
    return flat(student).tolist(), {name: value.tolist() for name, value in loss.state_dict().items()}


@pytest.mark.slow
def test_two_processes_have_the_student_and_the_banks_of_one():
    expected, state = of_all()
    found = in_processes(2, of_all)
    assert found[0] == found[1]
    assert found[0][0] == pytest.approx(expected, abs=1e-10)
    for name, values in found[0][1].items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(state[name]), rtol=0, atol=1e-6)
    assert state["steps"] == 9
