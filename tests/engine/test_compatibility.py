"""What earlier versions wrote goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import kdengine
from kdengine.losses import CE, KD, Hint

STORED = Path(__file__).parent / "checkpoint_of_0_1_0"
"""Written in the middle of the second of three epochs, by the version of that number as of 2026-11-28."""
LOSS, KD_TERM, HINT_TERM = 0.18612243980169296, 0.045007395558059216, 0.2392063604460822
"""Of the last epoch, as that version trained it to its end."""


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))


def test_a_checkpoint_of_0_1_0_goes_on_to_the_numbers_of_its_time(tmp_path):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 6, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, torch.randint(3, (32,), generator=generator))
    shutil.copytree(STORED, tmp_path / "run" / "checkpoints" / "step-00000006")
    engine = kdengine.Engine(
        network(5),
        network(9),
        losses={"kd": KD(temperature=kdengine.Cosine(4.0, 1.0)), "ce": CE(), "hint": Hint("0", "0")},
        weights={"ce": 0.1, "hint": kdengine.Linear(1.0, 0.0)},
        optimizer=lambda named: torch.optim.AdamW([parameter for _, parameter in named], 1e-2),
        lr_scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps),
        ema=0.9, accumulate=2, checkpoint_every=3, seed=0, out=tmp_path / "run", loggers=[], device="cpu",
        metrics={"top1": "top1"},
    )  # fmt: skip
    evaluation = kdengine.loader(data, 16, shuffle=False)
    result = engine.fit(kdengine.loader(data, 4, seed=1), evaluation, epochs=3, resume=True)
    assert [record["epoch"] for record in result.history] == [1, 2, 3]
    assert result.history[-1]["loss"] == pytest.approx(LOSS, rel=1e-4)
    assert result.history[-1]["kd"] == pytest.approx(KD_TERM, rel=1e-4)
    assert result.history[-1]["hint"] == pytest.approx(HINT_TERM, rel=1e-4)
