"""A long training does not grow: memory, open files and threads stay as they are, logs stay linear and small."""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

import kdengine
from kdengine.losses import CE, KD, Hint
from tests.engine.common import items, mlp
from tests.engine.several import in_processes

STEPS = 10_000
EPOCHS = 20
WARM = 0.3
"""Share of the training after which nothing may grow: the allocator has seen every size by then."""
MIB = 2**20


class Gauge:
    """Reads this process's memory, open files, threads and collected objects every hundredth of the training."""

    kdengine_hook_version = 1

    def __init__(self) -> None:
        self.readings: list[tuple[int, int, int, int]] = []

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        if context.step % (STEPS // 100) == 0:
            gc.collect()
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files = sum(1 for _ in Path("/proc/self/fd").iterdir())
            self.readings.append((resident, files, threading.active_count(), len(gc.get_objects())))


def train_for_long(out):
    """All that a fit may hold on to: features, schedules, an average, records, checkpoints, evaluations."""
    gauge = Gauge()
    batch = 8
    per_epoch = STEPS // EPOCHS
    trained = kdengine.Engine(
        mlp(8),
        mlp(16),
        losses={"kd": KD(temperature=kdengine.Cosine(4.0, 1.0)), "ce": CE(), "hint": Hint("0", "0")},
        optimizer=lambda named: torch.optim.AdamW([parameter for _, parameter in named], lr=1e-3),
        metrics={"top1": "top1"},
        ema=0.99,
        nonfinite="skip",
        checkpoint_every=1000,
        log_every=100,
        loggers=[],
        plugins=[gauge],
        out=out,
        device="cpu",
    )
    loader = kdengine.loader(items(per_epoch * batch), batch, seed=0)
    result = trained.fit(loader, kdengine.loader(items(), 16, shuffle=False), epochs=EPOCHS)
    return result.steps, gauge.readings


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ten_thousand_steps_leave_memory_files_and_threads_flat_and_logs_small(tmp_path):
    ((steps, readings),) = in_processes(1, train_for_long, tmp_path / "run")
    assert (steps, len(readings)) == (STEPS, 100)
    later = readings[int(WARM * len(readings)) :]
    resident, files, threads, objects = zip(*later, strict=True)
    half = len(later) // 2
    growth = max(resident[half:]) - max(resident[:half])
    print(
        f"\n{steps} steps: {resident[0] / MIB:.1f} MiB resident at {WARM:.0%}, {resident[-1] / MIB:.1f} at the end; "
        f"{files[0]} and {files[-1]} open files, {threads[0]} and {threads[-1]} threads, "
        f"{objects[0]} and {objects[-1]} objects"
    )
    assert growth < MIB
    assert set(files) == {files[0]}
    assert set(threads) == {threads[0]}
    assert max(objects) - objects[0] < EPOCHS * 20  # the history has a record for each epoch
    for name, lines in (("steps.jsonl", STEPS), ("metrics.jsonl", STEPS // 100 + EPOCHS)):
        text = (tmp_path / "run" / name).read_bytes()
        assert text.count(b"\n") == lines, name
        assert len(text) / lines < 300, name
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 4
