"""Time and memory of the fused loss, forward and backward, beside what it replaces, in turn in one run.

pytest tests/benchmarks/test_kd_loss_speed.py -m benchmark -n 0 --benchmark-enable --benchmark-json=kd_loss.json

The JSON holds, per case, the median time of each side, the ratios and the peak memory under `extra_info`; a plot
is drawn beside it. With a GPU the same command measures that GPU.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

from kdengine.ops import backend_info, kd_loss
from tests.ops import baselines

from .allocator import LARGEST, keeping
from .memory import peak_bytes
from .stopwatch import in_turn, ratio

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Case(NamedTuple):
    """One row of the table: logits of rows x classes, and the objective."""

    rows: int
    classes: int
    dtype: str
    objective: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.classes}-{self.dtype}-{self.objective}"


SHAPES = {
    "cpu": ((128, 10), (4096, 10), (4096, 100), (1024, 1000), (256, 32000), (64, 128256), (32, 262144)),
    "cuda": ((128, 10), (262144, 10), (131072, 100), (65536, 1000), (8192, 32000), (4096, 128256), (2048, 262144)),
}[DEVICE]
CASES = [Case(*shape, dtype, objective) for shape in SHAPES for dtype in DTYPES for objective in ("KL", "KL+CE")]

FASTER: dict[Case, dict[str, float]] = {
    Case(64, 128256, "fp32", "KL"): {"eager": 10, "torch.compile": 4.5, "floor": 1 / 1.25},
    Case(64, 128256, "fp32", "KL+CE"): {"eager": 15},
    Case(64, 128256, "bf16", "KL"): {"eager": 8, "torch.compile": 6},
    Case(1024, 1000, "fp32", "KL"): {"eager": 10, "torch.compile": 5},
    Case(4096, 10, "fp32", "KL"): {"eager": 10, "torch.compile": 3},
    Case(128, 10, "fp32", "KL"): {"eager": 1.7, "torch.compile": 2},
    Case(128, 10, "fp32", "KL+CE"): {"eager": 2.8},
}
"""How many times faster than each side the fused loss has to be on a CPU."""


def fused(with_labels: bool) -> baselines.Loss:
    """The operator as a user calls it."""

    def loss(student, teacher, labels):
        if not with_labels:
            return kd_loss(student, teacher, temperature=baselines.TEMPERATURE)
        return kd_loss(
            student,
            teacher,
            labels,
            temperature=baselines.TEMPERATURE,
            soft_weight=baselines.SOFT,
            hard_weight=baselines.HARD,
        )

    return loss


def sides(case: Case) -> dict[str, Callable[[], object]]:
    """Every side as a function of nothing: loss and gradient, or the floor's movement of the same bytes."""
    generator = torch.Generator().manual_seed(0)
    shape, dtype = (case.rows, case.classes), DTYPES[case.dtype]
    student, teacher = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(2))
    labels = torch.randint(0, case.classes, (case.rows,), generator=generator).to(DEVICE)
    leaf, out = student.clone().requires_grad_(), torch.empty_like(student)

    def with_gradient(loss: baselines.Loss) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(leaf, teacher, labels), leaf)

    with_labels = case.objective == "KL+CE"
    eager = baselines.kl_and_ce if with_labels else baselines.kl
    found = {
        "kdengine": with_gradient(fused(with_labels)),
        "eager": with_gradient(eager),
        "torch.compile": with_gradient(baselines.compiled(eager)),
        "floor": lambda: torch.add(student, teacher, out=out),
    }
    if liger := baselines.liger(with_labels):
        found["liger"] = with_gradient(liger)
    return found


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """The suite runs each test on one thread; an operator is measured on all of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark
@pytest.mark.parametrize("case", CASES, ids=str)
def test_speed(case, benchmark, capsys):
    torch._dynamo.reset()
    runs = sides(case)
    kept = case.rows * case.classes * DTYPES[case.dtype].itemsize <= LARGEST
    with keeping(large=kept):
        times = in_turn(runs, DEVICE)
        benchmark.pedantic(runs["kdengine"], rounds=5, warmup_rounds=1)
    found = {name: ratio(times, name, "kdengine") for name in runs if name != "kdengine"}
    seconds = {name: statistics.median(values) for name, values in times.items()}
    peaks = {name: peak_bytes(run, DEVICE) for name, run in runs.items() if name != "floor"}
    benchmark.group = str(case)
    benchmark.extra_info.update(
        case._asdict(),
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        backend=backend_info().name,
        seconds=seconds,
        times_of_kdengine=found,
        peak_bytes=peaks,
        memory_is_kept=kept,
    )
    with capsys.disabled():
        shown = "  ".join(f"{name} {value * 1e3:.3f} ms" for name, value in seconds.items())
        print(f"\n{case}: {shown}  {', '.join(f'{n} x{r:.2f}' for n, r in found.items())}")
    if DEVICE == "cpu" and backend_info().name == "compiled":
        for name, least in FASTER.get(case, {}).items():
            assert found[name] >= least, f"{name} takes {found[name]:.2f} times kdengine's time, expected {least}"


@pytest.mark.benchmark
@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_cost_almost_nothing(dtype):
    runs = {name: sides(Case(64, 128256, dtype, name))["kdengine"] for name in ("KL", "KL+CE")}
    with keeping(large=True):
        extra = ratio(in_turn(runs, DEVICE, rounds=31), "KL+CE", "KL")
    assert extra <= 1.05
