"""Time per step: the engine against a hand-written loop with the same operator, in turn in one process.

All sides train the same models with the same optimizer, so that no side has its weights in a better place in memory;
a second hand-written loop shows what the measurement cannot tell apart.

pytest tests/benchmarks/test_step_overhead.py -m benchmark -n 0 -s
"""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import contextmanager

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

TARGET_US = 40.0
TARGET_PLUGINS_US = 10.0
TARGET_RATIO = 1.01


def models(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    if name == "linear":
        return linear(), linear()
    if name == "resnet20":
        return resnet20(), resnet20()
    return TutorialStudent(), TutorialTeacher()


def linear() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))


def make_optimizer(student: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9)


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

    def __init__(self, student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.student, self.teacher, self.optimizer = student, teacher, optimizer
        self.teacher.eval().requires_grad_(False)

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

    def __init__(
        self, student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, plugins: int = 0
    ) -> None:
        self.student = student
        engine = kdengine.Engine(
            student,
            teacher,
            losses={"kd": KD(temperature=4.0, hard_weight=0.1 / 0.9)},
            weights={"kd": 0.9},
            optimizer=optimizer,
            loggers=[],
            plugins=[Observer(position) for position in range(plugins)],
            device="cpu",
        )
        self.fit = engine.assemble(Feed(make_data(2, 1), 1, to_batch))

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        report = loop.train_step(self.fit, [to_batch((inputs, labels))])
        return report.loss


@contextmanager
def quiet():
    """One thread, and no garbage collection that would hit one side and spare another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
        torch.set_num_threads(threads)


def in_turn(sides, data, blocks: int, steps: int) -> dict[str, list[float]]:
    """Microseconds per step of each side, a value per block; who goes first changes from block to block."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    with quiet():
        for block in range(blocks + 2):
            turn = block % len(names)
            for name in names[turn:] + names[:turn]:
                step = sides[name].step
                start = time.perf_counter()
                for position in range(steps):
                    step(*data[position % len(data)])
                if block >= 2:  # the first two warm up
                    times[name].append((time.perf_counter() - start) / steps * 1e6)
    return times


def added(times, to: str, by: str) -> float:
    """Median over the blocks of what one side takes longer than another in the same block."""
    return statistics.median(b - a for a, b in zip(times[to], times[by], strict=True))


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("name", "batch_size", "blocks", "steps"),
    [
        ("linear", 4, 400, 10),
        ("tutorial", 4, 200, 5),
        ("tutorial", 128, 60, 1),
        ("resnet20", 128, 20, 1),
    ],
)
def test_engine_adds_little_to_a_hand_written_loop(name, batch_size, blocks, steps):
    pair = models(name)
    given = (*pair, make_optimizer(pair[0]))
    sides = {"hand": HandWritten(*given), "engine": ByEngine(*given), "control": HandWritten(*given)}
    times = in_turn(sides, make_data(batch_size), blocks, steps)
    base = statistics.median(times["hand"])
    extra, control = added(times, "hand", "engine"), added(times, "hand", "control")
    ratio = statistics.median(b / a for a, b in zip(times["hand"], times["engine"], strict=True))
    print(
        f"\n{name} batch {batch_size}: {base:.0f} us by hand, engine {extra:+.1f} us, ratio {ratio:.4f}; "
        f"a second loop by hand {control:+.1f} us"
    )
    assert ratio <= TARGET_RATIO if base >= 10_000 else extra <= TARGET_US


@pytest.mark.benchmark
def test_ten_plugins_that_implement_every_hook_add_at_most_10_us():
    pair = models("linear")
    given = (*pair, make_optimizer(pair[0]))
    sides = {"bare": ByEngine(*given), "observed": ByEngine(*given, plugins=10), "control": ByEngine(*given)}
    times = in_turn(sides, make_data(4), 400, 10)
    extra, control = added(times, "bare", "observed"), added(times, "bare", "control")
    print(f"\nten plugins: {extra:+.1f} us; a second engine without {control:+.1f} us")
    assert extra <= TARGET_PLUGINS_US


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 128])
def test_parameters_after_200_steps_are_the_same_bits(batch_size):
    hand, engine = (
        side(*pair, make_optimizer(pair[0])) for side in (HandWritten, ByEngine) for pair in [models("tutorial")]
    )
    data = make_data(batch_size)
    for step in range(200):
        batch = data[step % len(data)]
        hand.step(*batch)
        engine.step(*batch)
    for name, parameter in hand.student.state_dict().items():
        assert torch.equal(parameter, engine.student.state_dict()[name]), name
