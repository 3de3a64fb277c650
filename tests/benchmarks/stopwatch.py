"""Time of several functions in turn: one round runs each of them, so that a slow moment hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Run = Callable[[], object]

BLOCK_S = 0.01
"""A block repeats a short function until it takes about this long."""


def in_turn(sides: Mapping[str, Run], device: str = "cpu", rounds: int = 15) -> dict[str, list[float]]:
    """Seconds per call of each side, one value per round; the first round is a warm-up and not counted."""
    measure = _on_cuda if device == "cuda" else _on_cpu
    repeats = {name: _repeats(run, measure) for name, run in sides.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = measure(sides[name], repeats[name])
            if turn:
                times[name].append(seconds)
    return times


def ratio(times: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median over the rounds of one side's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))


def _repeats(run: Run, measure: Callable[[Run, int], float]) -> int:
    for _ in range(3):
        run()
    return max(1, round(BLOCK_S / measure(run, 1)))


def _on_cpu(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _on_cuda(run: Run, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats
