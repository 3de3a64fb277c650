"""The training that is killed: whatever a checkpoint has to hold takes part in it, and no clock does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import kdengine
from kdengine.engine import loop
from kdengine.engine.batching import to_batch
from kdengine.engine.feed import Feed
from kdengine.engine.loader import Loader
from kdengine.losses import CE, KD

CLASSES = 5
EPOCHS = 3
KEEP = 2


class Crops(torch.utils.data.Dataset):
    """Random crops of fixed noise."""

    def __init__(self, count: int = 24) -> None:
        self.images = torch.randn(count, 1, 10, 10, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        top, left = torch.randint(0, 3, (2,)).tolist()
        return self.images[index, :, top : top + 8, left : left + 8], index % CLASSES


class Noise:
    """A plugin with a state: noise upon every input, from a generator of its own."""

    kdengine_hook_version = 1
    kdengine_name = "noise"

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    @kdengine.hookimpl
    def kdengine_on_batch(self, context):
        batch = context.batch
        batch.inputs = batch.inputs + 0.1 * torch.randn(batch.inputs.shape, generator=self.generator)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class Archive:
    """Copies every checkpoint to where nothing is removed, under the number of its turn; without a folder, none."""

    kdengine_hook_version = 1

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @kdengine.hookimpl
    def kdengine_on_checkpoint_saved(self, context):
        if self.folder is not None and context.fit.rank == 0:
            shutil.copytree(context.path, self.folder / f"{len(list(self.folder.iterdir())):03d}")


class Messages(kdengine.Logger):
    """Collects what a person would have been told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


class StoppedClock(loop.Clock):
    """Wall time is the one thing in which two runs may differ, so it stands still."""

    def lap(self) -> float:
        return 0.0

    def rate(self) -> float:
        return 0.0


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    body = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*body, nn.Dropout(0.3), nn.Linear(width * 36, CLASSES))


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A metric with many values, where the share of right answers has few."""
    return functional.cross_entropy(logits, labels, reduction="none").neg()


def engine(out: Path | None, messages: Messages, archive: Path | None, **options: Any) -> kdengine.Engine:
    defaults = {
        "losses": {"kd": KD(temperature=kdengine.Cosine(4.0, 1.0)), "ce": CE()},
        "weights": {"ce": 0.1},
        "optimizer": lambda named: torch.optim.AdamW([parameter for _, parameter in named], lr=1e-2),
        "lr_scheduler": lambda opt, steps: torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=steps),
        "ema": 0.9,
        "accumulate": 2,
        "checkpoint_every": 2,
        "log_every": 2,
        "keep": KEEP,
        "seed": 0,
        "loggers": [messages],
        "plugins": [Noise(), Archive(archive)],
        "metrics": {"margin": margin, "top1": "top1"},
        "device": "cpu",
    }
    return kdengine.Engine(network(4), network(8), out=out, **{**defaults, **options})


def crops() -> Loader:
    return kdengine.loader(Crops(), 4, seed=3)


def import_everything() -> None:
    """Make what a training imports at its first use present in this process; nothing is trained."""
    engine(None, Messages(), None).assemble(Feed(crops(), 2, to_batch))


def train(out: Path, messages: Messages, archive: Path | None, **options: Any) -> None:
    """Train from where the run directory stands to the end.

    Args:
        out: the run directory.
        messages: gets what is said.
        archive: gets a copy of every checkpoint.
        options: of the engine, in the place of what is usual here.
    """
    loop.Clock = StoppedClock
    evaluation = kdengine.loader(Crops(12), 6, shuffle=False)
    engine(out, messages, archive, **options).fit(crops(), evaluation, epochs=EPOCHS, resume="auto")
