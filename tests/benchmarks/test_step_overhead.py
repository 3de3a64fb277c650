"""Time per step: the engine against a hand-written loop with the same operator, interleaved in one run.

pytest tests/benchmarks -m benchmark -n 0 -s
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch import nn

import kdengine
from kdengine.api.hooks import CALLBACKS
from kdengine.engine import loop
from kdengine.engine.batching import to_batch
from kdengine.engine.feed import Feed
from kdengine.losses import KD
from kdengine.models.resnet import resnet20
from kdengine.models.tutorial import TutorialStudent, TutorialTeacher
from kdengine.ops import kd_loss

BLOCKS = 40
TARGET_US = 40.0
TARGET_RATIO = 1.01


def models(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    if name == "resnet20":
        return resnet20(), resnet20()
    return TutorialStudent(), TutorialTeacher()


def make_data(batch_size: int, count: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(batch_size, 3, 32, 32, generator=generator),
            torch.randint(0, 10, (batch_size,), generator=generator),
        )
        for _ in range(count)
    ]


class HandWritten:
    """What a careful person writes without an engine."""

    def __init__(self, name: str) -> None:
        self.student, self.teacher = models(name)
        self.teacher.eval().requires_grad_(False)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.001, momentum=0.9)

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        with torch.no_grad():
            teacher = self.teacher(inputs)
        student = self.student(inputs)
        loss = kd_loss(student, teacher, labels, temperature=4.0, soft_weight=0.9, hard_weight=0.1)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class Observer:
    """A plugin that implements every callback hook and does nothing."""

    kdengine_hook_version = 1

    def __init__(self, position: int) -> None:
        self.kdengine_name = f"observer{position}"


def _nothing(hook: str):
    def implementation(self, context):
        return None

    implementation.__name__ = hook
    return kdengine.hookimpl(implementation)


for _hook in CALLBACKS:
    setattr(Observer, _hook, _nothing(_hook))


class ByEngine:
    """The same step through the engine's loop."""

    def __init__(self, name: str, plugins: int = 0) -> None:
        self.student, teacher = models(name)
        engine = kdengine.Engine(
            self.student,
            teacher,
            losses={"kd": KD(temperature=4.0, hard_weight=0.1 / 0.9)},
            weights={"kd": 0.9},
            optimizer=lambda named: torch.optim.SGD([p for _, p in named], lr=0.001, momentum=0.9),
            loggers=[],
            plugins=[Observer(position) for position in range(plugins)],
            device="cpu",
        )
        self.fit = engine.assemble(Feed(make_data(2, 1), 1, to_batch))

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        report = loop.train_step(self.fit, [to_batch((inputs, labels))])
        return report.loss


def interleave(sides, data, steps: int) -> list[list[float]]:
    """Seconds per step of each side: the median over blocks that take turns."""
    times: list[list[float]] = [[] for _ in sides]
    for block in range(BLOCKS + 1):
        for side, collected in zip(sides, times, strict=True):
            start = time.perf_counter()
            for step in range(steps):
                side.step(*data[step % len(data)])
            if block:
                collected.append((time.perf_counter() - start) / steps)
    return times


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "batch_size", "steps"), [("tutorial", 4, 30), ("tutorial", 128, 3), ("resnet20", 128, 1)]
)
def test_engine_adds_little_to_a_hand_written_loop(name, batch_size, steps):
    torch.set_num_threads(1)
    hand, engine = interleave([HandWritten(name), ByEngine(name)], make_data(batch_size), steps)
    base = statistics.median(hand)
    added = statistics.median(b - a for a, b in zip(hand, engine, strict=True))
    ratio = statistics.median(b / a for a, b in zip(hand, engine, strict=True))
    print(f"\n{name} batch {batch_size}: {base * 1e6:.0f} us by hand, {added * 1e6:+.1f} us, ratio {ratio:.4f}")
    assert ratio <= TARGET_RATIO if base >= 0.01 else added * 1e6 <= TARGET_US


@pytest.mark.benchmark
def test_ten_plugins_that_implement_every_hook_add_at_most_10_us():
    torch.set_num_threads(1)
    sides = [ByEngine("tutorial"), ByEngine("tutorial", plugins=10)]
    bare, observed = interleave(sides, make_data(4), 30)
    added = statistics.median(b - a for a, b in zip(bare, observed, strict=True))
    print(f"\nten plugins: {added * 1e6:+.1f} us a step of {statistics.median(bare) * 1e6:.0f} us")
    assert added * 1e6 <= 10.0


@pytest.mark.parametrize("batch_size", [4, 128])
def test_parameters_after_200_steps_are_the_same_bits(batch_size):
    hand, engine = HandWritten("tutorial"), ByEngine("tutorial")
    data = make_data(batch_size)
    for step in range(200):
        batch = data[step % len(data)]
        hand.step(*batch)
        engine.step(*batch)
    for name, parameter in hand.student.state_dict().items():
        assert torch.equal(parameter, engine.student.state_dict()[name]), name
