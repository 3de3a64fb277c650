"""Losses with a memory write it at the end of a step, and only of a step of training."""

from __future__ import annotations

import pytest
import torch

import kdengine
from kdengine.api.processes import join
from kdengine.engine.strategies import Replicated
from tests.engine.common import engine, items, mlp
from tests.engine.several import in_processes


class Mean(kdengine.Loss):
    """Distance to the mean of the logits that the teacher gave in the steps before."""

    def setup(self, example):
        self.register_buffer("mean", torch.zeros(example.teacher.logits.shape[-1], dtype=torch.float64))
        self.seen, self.ended = [], 0

    def per_item(self, batch):
        if self.training and torch.is_grad_enabled():
            self.seen.append(batch.teacher.logits)
        return (batch.student.logits - self.mean).square().mean(-1)

    def end_step(self):
        self.ended += 1
        if self.seen:
            self.mean.copy_(kdengine.gather(torch.cat(self.seen)).mean(0))
            self.seen.clear()


def trained(sizes, **options):
    """The student and the memory after steps over micro-batches of these sizes."""
    loss, student = Mean(), mlp(dtype=torch.float64)
    made = engine(student, mlp(32, dtype=torch.float64), losses={"mean": loss}, weights={}, seed=0, **options)
    data = items(30, torch.float64)[:]
    for _ in range(3):
        made.train_step([tuple(part[rows] for part in data) for rows in torch.arange(30).split(sizes)])
    return torch.cat([p.detach().flatten() for p in student.parameters()]), loss


def test_any_split_of_a_step_sees_the_same_memory():
    expected, whole = trained([30])
    for sizes in ([10, 10, 10], [29, 1], [7, 7, 7, 7, 2]):
        found, loss = trained(sizes)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(loss.mean, whole.mean, rtol=0, atol=1e-12)
        assert loss.ended == 3


class Skip:
    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_on_step_start(self, context):
        return kdengine.Decision.SKIP if context.step == 1 else None


def test_a_step_that_is_left_out_writes_nothing():
    loss = Mean()
    engine(losses={"mean": loss}, weights={}, plugins=[Skip()]).fit(kdengine.loader(items(), 16), epochs=1)
    assert loss.ended == 2
    assert loss.mean.any()


def test_gradient_shares_leave_no_trace():
    loss, made = Mean(), []
    made = engine(losses={"mean": loss}, weights={}, gradient_shares=True, metrics={"top1": "top1"}, seed=0)
    made.fit(kdengine.loader(items(), 16), kdengine.loader(items(), 16, shuffle=False), epochs=2)
    assert loss.seen == []
    assert loss.ended == 4
    assert loss.training


def test_a_foreign_loop_writes_at_its_next_call():
    loss = Mean()
    made = engine(losses={"mean": loss}, weights={})
    inputs = items()[:][0]
    made.objective(inputs).backward()
    assert not loss.mean.any()
    made.objective(inputs).backward()
    assert loss.mean.any()


def buffers_after_a_forward_pass():
    rank = join().rank
    losses = torch.nn.ModuleDict({"plain": torch.nn.BatchNorm1d(2), "bank": torch.nn.BatchNorm1d(2)})
    for loss in losses.values():
        loss.running_mean.fill_(rank + 1.0)
    student = mlp()
    strategy = Replicated(student, losses, unused=True, remembering=["bank"])
    for loss in losses.values():
        loss.running_mean.fill_(rank + 1.0)
    strategy.forward(lambda: student(items()[:][0]).sum()).backward()
    return [float(loss.running_mean[0]) for loss in losses.values()]


def test_memories_are_not_sent_at_every_forward_pass():
    assert in_processes(2, buffers_after_a_forward_pass) == [[1.0, 1.0], [1.0, 2.0]]


def of_two(sizes):
    rank, world = join().rank, join().world
    student, loss = mlp(dtype=torch.float64), Mean()
    made = engine(student, mlp(32, dtype=torch.float64), losses={"mean": loss}, weights={}, seed=0)
    data = items(30, torch.float64)[:]
    for _ in range(3):
        made.train_step([tuple(part[rows[rank::world]] for part in data) for rows in torch.arange(30).split(sizes)])
    return torch.cat([p.detach().flatten() for p in student.parameters()]).tolist(), loss.mean.tolist()


def test_two_processes_have_the_memory_of_one():
    expected, whole = trained([30])
    for found, mean in in_processes(2, of_two, [13, 17]):
        assert found == pytest.approx(expected.tolist(), abs=1e-12)
        assert mean == pytest.approx(whole.mean.tolist(), abs=1e-12)
