"""Small models and data for the engine's tests."""

from __future__ import annotations

import torch
from torch import nn

import kdengine
from kdengine.losses import CE, KD

CLASSES = 5
INPUTS = 12


def mlp(hidden: int = 8, dtype: torch.dtype = torch.float32, dropout: float = 0.0, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(hidden)
    layers = nn.Sequential(nn.Linear(INPUTS, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes))
    return layers.to(dtype)


def items(count: int = 32, dtype: torch.dtype = torch.float32) -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, INPUTS, generator=generator, dtype=torch.float64).to(dtype)
    return torch.utils.data.TensorDataset(inputs, torch.randint(0, CLASSES, (count,), generator=generator))


def sgd(named):
    return torch.optim.SGD([parameter for _, parameter in named], lr=0.1, momentum=0.9)


def engine(student: nn.Module | None = None, teacher: nn.Module | None = None, **options) -> kdengine.Engine:
    defaults = {
        "losses": {"kd": KD(temperature=2.0), "ce": CE()},
        "weights": {"kd": 0.9, "ce": 0.1},
        "optimizer": sgd,
        "loggers": [],
        "device": "cpu",
    }
    return kdengine.Engine(student or mlp(), teacher or mlp(32), **{**defaults, **options})


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class StopAt:
    """A plugin that leaves the fit after a step, as a fault would."""

    kdengine_hook_version = 1

    def __init__(self, step: int) -> None:
        self.step = step

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        if context.step == self.step:
            raise KeyboardInterrupt
