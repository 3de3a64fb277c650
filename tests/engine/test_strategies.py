"""Several processes train as one would: the same gradients, batches, decisions and checkpoints."""

from __future__ import annotations

import shutil

import pytest
import torch

import kdengine
from kdengine.api.processes import join
from kdengine.data.mixing import MixUp
from kdengine.engine import checkpoint
from kdengine.engine.shards import local, whole
from kdengine.engine.strategies import is_watched
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import KD, Hint
from tests.engine.common import StopAt, engine, items, mlp
from tests.engine.several import device, in_processes
from tests.engine.test_objective import ITEMS, LOSSES, unevenly_labelled

WEIGHTS = torch.linspace(0.0, 2.0, ITEMS)
SPLITS = ([ITEMS], [10, 10, 10], [7, 7, 7, 7, 2], [29, 1], [1] * ITEMS)


def update(name: str, strategy: str, rank: int, world: int, sizes: list[int], padding: int = 0) -> torch.Tensor:
    """What one optimizer step makes of the student, whose items are dealt out to processes in turns."""
    name, _, weighted = name.partition(", ")
    student = mlp(dtype=torch.float64)
    trained = engine(
        student,
        mlp(32, dtype=torch.float64),
        losses=LOSSES[name](),
        weights={},
        optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=1.0),
        seed=0,
        strategy=strategy,
        device=device(),
    )
    inputs, labels = unevenly_labelled()[:]
    micro_batches = []
    for part in torch.arange(ITEMS).split(sizes):
        own = part[rank::world]
        counted = torch.ones(len(own) + padding, dtype=torch.bool)
        counted[len(own) :] = False
        if len(own) == 0 and not padding:
            own, counted = part[:1], torch.zeros(1, dtype=torch.bool)
        filler = torch.full((padding, inputs.shape[1]), 7.0, dtype=inputs.dtype)
        batch = kdengine.Batch(
            torch.cat([inputs[own], filler]),
            torch.cat([labels[own], torch.zeros(padding, dtype=labels.dtype)]),
            mask=counted,
            weights=torch.cat([WEIGHTS[own], torch.ones(padding)]) if weighted else None,
        )
        micro_batches.append(batch)
    trained.train_step(micro_batches)
    return torch.cat([whole(p).detach().flatten().cpu() for p in student.parameters()])


def updates(strategy: str) -> dict[tuple[str, str], list[float]]:
    processes = join()
    weighted = [f"{name}, weighted" for name in LOSSES]
    found = {
        (name, str(sizes)): update(name, strategy, processes.rank, processes.world, sizes).tolist()
        for name in LOSSES
        for sizes in SPLITS
    }
    for name in (*LOSSES, *weighted):
        padded = 3 * processes.rank + 1
        found[name, "padding"] = update(name, strategy, processes.rank, processes.world, [13, 17], padded).tolist()
    return found


@pytest.fixture(scope="module")
def alone():
    names = [*LOSSES, *(f"{name}, weighted" for name in LOSSES)]
    return {name: update(name, "ddp", 0, 1, [ITEMS]) for name in names}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_spread_over_processes_and_micro_batches_gives_the_same_update(world, strategy, alone):
    for found in in_processes(world, updates, strategy):
        for (name, split), values in found.items():
            furthest = (torch.tensor(values, dtype=torch.float64) - alone[name]).abs().max()
            assert furthest <= 1e-12, f"{name}, micro-batches {split}: off by {furthest}"


def fit(strategy="ddp", *, out=None, epochs=5, resume=None, batch_size=8, student=None, teacher=None, **options):
    """A fit on the shared items; its losses by step, its metrics and its student."""
    student = student or mlp()
    seen = []
    defaults = {
        "seed": 1,
        "optimizer": lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
        "loggers": [lambda record, step: seen.append((step, record["loss"])) if "loss" in record else None],
        "log_every": 1,
        "metrics": {"top1": "top1", "agreement": "agreement"},
    }
    trained = engine(student, teacher, out=out, device=device(), strategy=strategy, **{**defaults, **options})
    result = trained.fit(
        kdengine.loader(items(), batch_size, seed=2),
        kdengine.loader(items(), 11, shuffle=False),
        epochs=epochs,
        resume=resume,
    )
    return seen, result.history, torch.cat([whole(p).detach().flatten().cpu() for p in student.parameters()]).tolist()


def adamw(named):
    return torch.optim.AdamW([p for _, p in named], lr=1e-3)


def fit_with_adamw(strategy):
    return fit(strategy, optimizer=adamw, epochs=13, accumulate=2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("train", [fit, pytest.param(fit_with_adamw, marks=pytest.mark.slow)])
def test_two_processes_follow_the_course_of_one(strategy, train):
    alone, history, _ = train("ddp")
    (together, shared_history, _), (others, same_history, _) = in_processes(2, train, strategy)
    assert len(alone) > 15
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-6)
    assert others == []
    assert shared_history == same_history
    for mine, theirs in zip(history, shared_history, strict=True):
        assert mine["top1"] == theirs["top1"]


def fit_with_mixup(strategy):
    return fit(strategy, batch_transforms=[MixUp(classes=5)], accumulate=2, batch_size=7)


def test_what_a_batch_transform_draws_does_not_depend_on_the_processes():
    alone, _, _ = fit_with_mixup("ddp")
    (together, _, _), _ = in_processes(2, fit_with_mixup, "ddp")
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-6)


def interrupted(strategy, out, step, student):
    """A fit with all that a checkpoint holds, left after a step; goes on where an earlier one left."""
    plugins = [] if step is None else [StopAt(step)]
    hint = Hint(student="2" if len(student) == 5 else "1", teacher="1")
    losses = {"hint": hint, "kd": KD(kdengine.Cosine(4.0, 1.0))}
    try:
        return fit(
            strategy, out=out, epochs=4, batch_size=7, accumulate=2, checkpoint_every=1, plugins=plugins,
            optimizer=adamw, ema=0.9, resume="auto", clip=1.0, weights={},
            lr_scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps),
            losses=losses, student=student,
        )  # fmt: skip
    except KeyboardInterrupt:
        return None


def student_with_statistics():
    student = mlp(dropout=0.1)
    return torch.nn.Sequential(student[0], torch.nn.BatchNorm1d(8), *student[1:])


def course(strategies, steps, out, make_student):
    """Leave and go on, once per strategy and step."""
    return [interrupted(*pair[:1], out, *pair[1:], make_student()) for pair in zip(strategies, steps, strict=True)][-1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_that_go_on_end_with_the_bits_of_those_that_were_never_left(tmp_path, strategy):
    whole_course = in_processes(2, course, [strategy], [None], tmp_path / "whole", student_with_statistics)
    with_breaks = in_processes(2, course, [strategy] * 3, [3, 4, None], tmp_path / "cut", student_with_statistics)
    assert whole_course[0][1:] == with_breaks[0][1:]
    exported = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "cut")]
    assert exported[0] == exported[1]


def wide_course(strategy, out, epochs):
    """The bits of a student whose gradients fill several parts of a bucket."""
    student = torch.nn.Sequential(*mlp(300)[:3], torch.nn.Linear(300, 900), torch.nn.ReLU(), torch.nn.Linear(900, 5))
    options = {"strategy": strategy, "device": device(), "out": out, "seed": 0}
    engine(student, **options).fit(kdengine.loader(items(), 16, seed=1), epochs=epochs, resume="auto")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_three_processes_add_gradients_in_one_order_however_long_they_have_lived(tmp_path, strategy):
    """An all-reduce adds in an order that depends on places in buckets, which DDP arranges anew after one step."""
    in_processes(3, wide_course, strategy, tmp_path / "whole", 3)
    for epochs in (1, 3):
        in_processes(3, wide_course, strategy, tmp_path / "cut", epochs)
    exported = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "cut")]
    assert exported[0] == exported[1]


@pytest.mark.parametrize(
    "first", [pytest.param(case, marks=pytest.mark.slow) for case in ((2, "fsdp"), (1, "ddp"), (4, "fsdp"), (2, "ddp"))]
)
def test_a_checkpoint_goes_on_with_any_number_of_processes_and_strategy(tmp_path, first):
    expected = in_processes(1, course, ["ddp"], [None], tmp_path / "whole", mlp)[0]
    world, strategy = first
    in_processes(world, course, [strategy], [5], tmp_path / "cut", mlp)
    for count, name in ((2, "fsdp"), (1, "ddp")):
        copy = tmp_path / f"{count}-{name}"
        shutil.copytree(tmp_path / "cut", copy)
        found = in_processes(count, course, [name], [None], copy, mlp)[0]
        assert torch.allclose(torch.tensor(found[2]), torch.tensor(expected[2]), rtol=0, atol=1e-5), (count, name)


class Bank(kdengine.Loss):
    """Distance to the mean of the logits that the teacher gave for a class so far: a memory bank."""

    needs = kdengine.Needs(labels=True)

    def setup(self, example):
        classes = example.teacher.logits.shape[-1]
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.ones(classes))

    def per_item(self, batch):
        means = (self.sums / self.counts[:, None])[batch.labels]
        values = (batch.student.logits - means).square().mean(-1)
        labels, logits = kdengine.gather(batch.labels), kdengine.gather(batch.teacher.logits)
        self.sums.index_add_(0, labels, logits)
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))
        return values


def fit_with_bank(strategy):
    return fit(strategy, losses={"bank": Bank()}, weights={})


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_memory_bank_is_that_of_one_process(strategy):
    alone, _, _ = fit_with_bank("ddp")
    (together, _, _), _ = in_processes(2, fit_with_bank, strategy)
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-6)


def fit_with_sharded_teacher(strategy, out):
    teacher = mlp(32)
    seen = fit(strategy, out=out, teacher=LiveTeacher(teacher, shard=True))
    held = sum(local(parameter).numel() for parameter in teacher.parameters())
    stored, _ = checkpoint.load(sorted((out / "checkpoints").glob("step-*"))[-1])
    students = {name for name, _ in mlp().named_parameters()}
    return seen[0], held, set(stored["student"]) == students, len(stored["optimizer"]["param_groups"][0]["params"])


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_sharded_teacher_is_held_in_parts_and_teaches_the_same(tmp_path, strategy):
    alone, _, _ = fit()
    total = sum(parameter.numel() for parameter in mlp(32).parameters())
    found = in_processes(2, fit_with_sharded_teacher, strategy, tmp_path / "run")
    assert torch.allclose(torch.tensor(found[0][0]), torch.tensor(alone), rtol=0, atol=1e-6)
    assert found[0][1] + found[1][1] == total
    assert abs(found[0][1] - found[1][1]) <= 12 + 32 + 2  # the odd row of each parameter
    assert {(own, count) for _, _, own, count in found} == {(True, 4)}


def fit_in_two_stages(strategy):
    """A hint with a projector, then the teacher's logits: each loss has no part in the other's stage."""
    turn = [0.5, 0.0], [0.5, 1.0]
    weights = {
        label: kdengine.Piecewise([[0.0, 1.0 - weight], [share, weight]], interpolation="constant")
        for label, (share, weight) in zip(("hint", "kd"), turn, strict=True)
    }
    return fit(strategy, losses={"hint": Hint(student="1", teacher="1"), "kd": KD()}, weights=weights)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_loss_that_is_left_out_at_weight_0_keeps_no_process_waiting(strategy):
    alone, history, _ = fit_in_two_stages("ddp")
    (together, _, _), _ = in_processes(2, fit_in_two_stages, strategy)
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), rtol=0, atol=1e-6)
    assert ("kd" in history[0], "hint" in history[-1]) == (False, False)


@pytest.mark.parametrize("how", ["a sparse embedding", "a hook on a gradient", "a hook behind a gradient", "nothing"])
def test_a_backward_pass_of_nothing_is_left_out_where_it_would_be_noticed(how):
    student = torch.nn.Sequential(torch.nn.Embedding(5, 4, sparse=how == "a sparse embedding"), torch.nn.Linear(4, 2))
    if how == "a hook on a gradient":
        student[1].weight.register_hook(lambda gradient: None)
    if how == "a hook behind a gradient":
        student[1].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    assert is_watched(student) is (how != "nothing")
