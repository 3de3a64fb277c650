"""Mutual learning: student and peer, each taught by the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import kdengine
from kdengine.losses import CE, KD, Hint
from kdengine.teachers.ensemble import Ensemble
from kdengine.teachers.peer import Peer
from tests.engine.common import INPUTS, engine, flat, items, mlp

TEMPERATURE = 2.0


def by_hand(student, peer, steps, lr=0.1, momentum=0.9, kd=0.9, ce=0.1, clip=None):
    """The paper's two objectives, each with an optimizer of its own; both gradients from the same forward passes."""
    pairs = [(student, peer), (peer, student)]
    optimizers = [torch.optim.SGD(own.parameters(), lr=lr, momentum=momentum) for own, _ in pairs]
    for inputs, labels in steps:
        outputs = {id(model): model(inputs) for model in (student, peer)}
        for (own, other), optimizer in zip(pairs, optimizers, strict=True):
            mine, theirs = outputs[id(own)], outputs[id(other)].detach()
            soft = functional.kl_div(
                (mine / TEMPERATURE).log_softmax(-1),
                (theirs / TEMPERATURE).log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            )
            loss = kd * TEMPERATURE**2 * soft + ce * functional.cross_entropy(mine, labels)
            optimizer.zero_grad()
            loss.backward(retain_graph=True)
            if clip is not None:
                nn.utils.clip_grad_norm_(own.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()


def batches(epochs, size=8):
    loader = kdengine.loader(items(dtype=torch.float64), size, seed=3)
    return [batch[:2] for epoch in range(epochs) for batch in map(tuple, (b.data for b in loader.batches(epoch)))]


def learn(student, peer, epochs=2, size=8, **options):
    defaults = {"losses": {"kd": KD(TEMPERATURE), "ce": CE()}, "weights": {"kd": 0.9, "ce": 0.1}}
    trained = engine(student, Peer(peer), **{**defaults, **options})
    return trained, trained.fit(kdengine.loader(items(dtype=torch.float64), size, seed=3), epochs=epochs)


def pair():
    return mlp(8, torch.float64), mlp(12, torch.float64)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_both_learn_as_with_two_optimizers_by_hand(clip):
    ours, theirs = pair(), pair()
    learn(*ours, clip=clip)
    by_hand(*theirs, batches(2), clip=clip)
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(flat(mine), flat(expected), rtol=0, atol=1e-12)


def test_accumulation_changes_neither():
    ours, theirs = pair(), pair()
    learn(*ours, size=4, accumulate=2)
    by_hand(*theirs, batches(2))
    for mine, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(flat(mine), flat(expected), rtol=0, atol=1e-12)


def test_the_student_learns_as_under_any_teacher_that_says_the_same():
    """The peer's objective gives the student no gradient, nor the student's the peer."""
    student, peer = pair()
    trained = engine(student, Peer(peer), losses={"kd": KD(TEMPERATURE), "ce": CE()}, weights={"kd": 0.9, "ce": 0.1})
    inputs, labels = batches(1)[0]
    trained.objective((inputs, labels)).backward()
    frozen = copy.deepcopy(student)
    engine(
        frozen, copy.deepcopy(peer), losses={"kd": KD(TEMPERATURE), "ce": CE()}, weights={"kd": 0.9, "ce": 0.1}
    ).objective((inputs, labels)).backward()
    for mine, expected in zip(student.parameters(), frozen.parameters(), strict=True):
        assert torch.allclose(mine.grad, expected.grad, rtol=0, atol=1e-14)
    only_ce = copy.deepcopy(peer)
    functional.cross_entropy(only_ce(inputs), labels).backward()
    assert not torch.allclose(peer[0].weight.grad, 0.1 * only_ce[0].weight.grad)


def test_the_terms_of_the_peer_are_in_the_records_and_take_no_share_of_the_students_gradient():
    _, result = learn(*pair())
    assert {"kd", "ce", "peer_kd", "peer_ce"} <= set(result.history[-1])
    line = result.history[-1]
    total = 0.9 * (line["kd"] + line["peer_kd"]) + 0.1 * (line["ce"] + line["peer_ce"])
    assert line["loss"] == pytest.approx(total)
    student, peer = mlp(8), mlp(12)
    measured = engine(student, Peer(peer), gradient_shares=True, metrics={"top1": "top1"}, loggers=[Seen()])
    measured.fit(kdengine.loader(items(), 8), kdengine.loader(items(), 16, shuffle=False), epochs=1)
    assert Seen.shares == {"gradient_share.kd", "gradient_share.ce"}


class Seen(kdengine.Logger):
    shares = frozenset()

    def log(self, record, *, step, kind):
        if kind == "evaluate":
            Seen.shares = {name for name in record if name.startswith("gradient_share")}


def test_unlabelled_items_teach_both_softly():
    data = items(dtype=torch.float64)
    labels = data.tensors[1].clone()
    labels[::2] = -100
    student, peer = pair()
    ours = engine(student, Peer(peer), losses={"kd": KD(TEMPERATURE), "ce": CE()}, weights={})
    inputs = data.tensors[0]
    ours.objective((inputs, labels)).backward()
    own = copy.deepcopy(peer)
    own.zero_grad()
    soft = functional.kl_div(
        (own(inputs) / TEMPERATURE).log_softmax(-1),
        (student(inputs).detach() / TEMPERATURE).softmax(-1),
        reduction="batchmean",
    )
    (TEMPERATURE**2 * soft + functional.cross_entropy(own(inputs), labels)).backward()
    for mine, expected in zip(peer.parameters(), own.parameters(), strict=True):
        assert torch.allclose(mine.grad, expected.grad, rtol=0, atol=1e-12)


def test_the_peer_may_have_options_of_its_own():
    def optimizer(named):
        own = [p for name, p in named if not name.startswith("teacher.")]
        peers = [p for name, p in named if name.startswith("teacher.")]
        assert [name for name, _ in named][-1] == "teacher.3.bias"
        return torch.optim.SGD([{"params": own, "lr": 0.1}, {"params": peers, "lr": 0.0}])

    student, peer = pair()
    before = [flat(student).clone(), flat(peer).clone()]
    learn(student, peer, optimizer=optimizer)
    assert not torch.equal(flat(student), before[0])
    assert torch.equal(flat(peer), before[1])


def test_a_ready_optimizer_takes_the_peer_in():
    student, peer = pair()
    before = flat(peer).clone()
    learn(student, peer, optimizer=torch.optim.SGD(student.parameters(), lr=0.1))
    assert not torch.equal(flat(peer), before)


def test_the_peer_trains_in_training_mode_and_is_measured_in_evaluation_mode():
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = mlp(12, dropout=0.5), []

        def forward(self, inputs):
            self.seen.append(self.net[2].training)
            return self.net(inputs)

    peer = Modes().eval()
    trained = engine(mlp(), Peer(peer), metrics={"agreement": "agreement"})
    trained.fit(kdengine.loader(items(), 8), kdengine.loader(items(), 16, shuffle=False), epochs=1)
    assert peer.seen[-2:] == [False, False]
    assert peer.seen[:-2] == [True] * 4
    assert not peer.training  # as it was given


def test_features_of_the_peer_teach_the_student_alone():
    losses = {"kd": KD(), "ce": CE(), "hint": Hint(student="1", teacher="1")}
    trained, result = learn(*pair(), losses=losses, weights={})
    assert "hint" in result.history[-1]
    assert "peer_hint" not in result.history[-1]
    names = {name for name, _ in trained.loss_parameters(batches(1)[0])}
    assert {name for name in names if name.startswith("teacher.")} == {
        f"teacher.{name}" for name, _ in mlp(12).named_parameters()
    }
    assert any(name.startswith("losses.hint.") for name in names)
    assert not any(name.startswith("losses.peer_") for name in names)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_both_learn_in_half_precision(precision):
    student, peer = mlp(8), mlp(12)
    before = flat(peer).clone()
    trained = engine(student, Peer(peer), precision=precision)
    assert trained.fit(kdengine.loader(items(), 8), epochs=2).skipped == 0
    assert torch.isfinite(flat(peer)).all()
    assert not torch.equal(flat(peer), before)


def test_schedules_of_the_student_are_those_of_the_peer():
    weights = {"kd": kdengine.Linear(1.0, 0.0)}
    losses = {"kd": KD(temperature=kdengine.Cosine(4.0, 1.0)), "ce": CE()}
    trained, _ = learn(*pair(), losses=losses, weights=weights)
    now = trained._fit.objective.scalars()
    assert now["weights.peer_kd"] == now["weights.kd"] == pytest.approx(0.0)
    assert now["peer_kd.temperature"] == now["kd.temperature"] == pytest.approx(1.0)


def test_a_gradient_of_the_peer_that_is_not_finite_is_named():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(12)

        def forward(self, inputs):
            out = self.net(inputs)
            out.register_hook(lambda grad: grad * float("nan"))
            return out

    with pytest.raises(kdengine.NonFiniteError, match=r"the gradient of teacher\.net"):
        engine(mlp(), Peer(Broken())).fit(kdengine.loader(items(), 8), epochs=1)


def test_what_cannot_learn_from_each_other_is_refused():
    student = mlp()
    with pytest.raises(kdengine.ConfigurationError, match="share 4 parameter tensors"):
        engine(student, Peer(student)).fit(kdengine.loader(items(), 8), epochs=1)
    with pytest.raises(kdengine.ConfigurationError, match="no trainable parameter"):
        engine(student, Peer(mlp(12).requires_grad_(False))).fit(kdengine.loader(items(), 8), epochs=1)
    unfit = {
        r"none of \['hint'\] is one": {"hint": Hint(student="1", teacher="1")},
        "the label 'peer_kd' is that of the teacher's own 'kd'": {"kd": KD(), "peer_kd": KD()},
    }
    for said, losses in unfit.items():
        with pytest.raises(kdengine.ConfigurationError, match=said):
            engine(student, Peer(mlp(12)), losses=losses, weights={}).fit(kdengine.loader(items(), 8), epochs=1)
    with pytest.raises(kdengine.ConfigurationError, match="evolves"):
        Ensemble([Peer(mlp(12)), mlp(32)])


def test_labels_alone_train_both_side_by_side():
    student, peer = pair()
    alone = [mlp(8, torch.float64), mlp(12, torch.float64)]
    learn(student, peer, losses={"ce": CE()}, weights={})
    by_hand(*alone, batches(2), kd=0.0, ce=1.0)
    assert torch.allclose(flat(peer), flat(alone[1]), rtol=0, atol=1e-12)


def test_inputs_may_be_of_any_form():
    class Keyed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net = mlp(width)

        def forward(self, x):
            return {"logits": self.net(x)}

    data = [{"x": torch.randn(4, INPUTS), "labels": torch.tensor([0, 1, 2, 3])} for _ in range(3)]
    assert engine(Keyed(8), Peer(Keyed(12))).fit(data, epochs=1).steps == 3
