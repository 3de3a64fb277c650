"""The training that is killed: whatever a checkpoint has to hold takes part in it, and no clock does."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
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
from kdengine.losses import CE, KD, Hint

CLASSES = 5
EPOCHS = 3
ITEMS = 24
KEEP = 2


class Crops(torch.utils.data.Dataset):
    """Random crops of fixed noise."""

    def __init__(self, count: int) -> None:
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


class Deadly:
    """Kills its process while a micro-batch of a step is under way; without a place, never."""

    kdengine_hook_version = 1

    def __init__(self, step: int | None = None, micro: int = 0) -> None:
        self.place = step, micro

    @kdengine.hookimpl
    def kdengine_on_teacher_output(self, context):
        if (context.step, context.micro) == self.place:
            os.kill(os.getpid(), signal.SIGKILL)


class Bank(kdengine.Loss):
    """Distance to the last logits that the teacher gave for the item: a memory bank, changed by every micro-batch."""

    needs = kdengine.Needs(index=True)

    def __init__(self, items: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(items, CLASSES))

    def per_item(self, batch):
        remembered = self.seen[batch.index].clone()
        self.seen[batch.index] = batch.teacher.logits.float()
        return (batch.student.logits.float() - remembered).square().mean(-1)


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


class Network(nn.Module):
    """A residual block, whose input has three readers beside the loss, and state that no state dict holds.

    ``drift`` is a buffer that is not persistent, and ``made`` one that the first training forward makes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
        self.inner, self.other = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(width * 36, CLASSES))
        self.register_buffer("drift", torch.zeros(width, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(images))
        if self.training:
            if not hasattr(self, "made"):
                self.register_buffer("made", torch.zeros(()))
            self.drift.lerp_(x.detach().float().mean((0, 2, 3)).view(-1, 1, 1), 0.1)
            self.made += x.detach().float().std()
        x = x - 0.1 * self.drift.to(x.dtype)
        x = x.tanh() + self.inner(x).relu() + self.other(x)
        return self.head(x) * (1.0 + 0.01 * getattr(self, "made", 0.0))


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return Network(width)


def margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A metric with many values, where the share of right answers has few."""
    return functional.cross_entropy(logits, labels, reduction="none").neg()


def usual_losses() -> dict[str, kdengine.Loss]:
    return {
        "kd": KD(temperature=kdengine.Cosine(4.0, 1.0)),
        "ce": CE(),
        "hint": Hint(student="norm", teacher="norm"),
    }


def engine(out: Path | None, messages: Messages, **options: Any) -> kdengine.Engine:
    defaults = {
        "losses": usual_losses(),
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
        "plugins": [Noise()],
        "metrics": {"margin": margin, "top1": "top1"},
        "gradient_shares": True,
        "device": "cpu",
    }
    return kdengine.Engine(network(4), network(8), out=out, **{**defaults, **options})


def crops(items: int = ITEMS, workers: int = 0) -> Loader:
    return kdengine.loader(Crops(items), 4, seed=3, workers=workers)


def import_everything() -> None:
    """Make what a training imports at its first use present in this process; nothing is trained."""
    engine(None, Messages()).assemble(Feed(crops(), 2, to_batch))


def train(
    out: Path,
    messages: Messages,
    archive: Path | None,
    *,
    epochs: int = EPOCHS,
    items: int = ITEMS,
    workers: int = 0,
    bank: bool = False,
    deadly: Sequence[int] = (),
    **options: Any,
) -> None:
    """Train from where the run directory stands to the end.

    Args:
        out: the run directory.
        messages: gets what is said.
        archive: gets a copy of every checkpoint.
        epochs: passes over the data.
        items: in the data set.
        workers: processes that load it.
        bank: whether a loss with a memory bank takes part.
        deadly: step and micro-batch in which the process dies.
        options: of the engine, in the place of what is usual here.
    """
    loop.Clock = StoppedClock
    if bank:
        options["losses"] = {**usual_losses(), "bank": Bank(items)}
    evaluation = kdengine.loader(Crops(12), 6, shuffle=False)
    plugins = [Noise(), Archive(archive), Deadly(*deadly)]
    trained = engine(out, messages, plugins=plugins, **options)
    trained.fit(crops(items, workers), evaluation, epochs=epochs, resume="auto")
