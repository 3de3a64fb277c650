"""A whole fit in a fraction of a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdengine.api import Loss, from_callable
from kdengine.engine.engine import Engine
from kdengine.engine.loader import loader
from kdengine.engine.result import Result

ITEMS, INPUTS, CLASSES = 32, 6, 3


class TinyRun(NamedTuple):
    """The outcome of a tiny fit, and the engine that ran it."""

    result: Result
    engine: Engine


def tiny_run(
    losses: Mapping[str, Loss] | Sequence[Loss] | Loss | None = None,
    *,
    epochs: int = 1,
    batch_size: int = 8,
    evaluate: bool = False,
    resume: Any = None,
    **options: Any,
) -> TinyRun:
    """Distil a small perceptron into a smaller one: 32 items with 6 inputs and 3 classes, 4 steps an epoch.

    Both models have the modules ``hidden``, ``relu`` and ``head``.

    Args:
        losses: as for :class:`kdengine.Engine`; the squared error between logits by default.
        epochs: passes over the data.
        batch_size: items per micro-batch.
        evaluate: whether to evaluate (top1, unless ``metrics`` says otherwise) after every epoch.
        resume: as for ``fit``.
        options: further arguments of the engine, also ``student``, ``teacher`` and ``optimizer``.

    Example:
        >>> tiny_run(epochs=2).result.steps
        8
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options.setdefault("teacher", perceptron(16))
        options.setdefault("student", perceptron(8))
        inputs, labels = torch.randn(ITEMS, INPUTS), torch.randint(CLASSES, (ITEMS,))
        data = TensorDataset(inputs, labels)
        defaults = {"device": "cpu", "seed": 0, "loggers": [], "optimizer": descend}
        if evaluate:
            options.setdefault("metrics", {"top1": "top1"})
        criterion = from_callable(nn.MSELoss(reduction="none")) if losses is None else losses
        engine = Engine(losses=criterion, **{**defaults, **options})
        batches = loader(data, batch_size=batch_size, seed=0)
        evaluation = loader(data, batch_size=batch_size, shuffle=False) if evaluate else None
        return TinyRun(engine.fit(batches, evaluation, epochs=epochs, resume=resume), engine)


def perceptron(width: int) -> nn.Sequential:
    """A model with one hidden layer."""
    model = nn.Sequential()
    model.add_module("hidden", nn.Linear(INPUTS, width))
    model.add_module("relu", nn.ReLU())
    model.add_module("head", nn.Linear(width, CLASSES))
    return model


def descend(named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Plain gradient descent."""
    return torch.optim.SGD([parameter for _, parameter in named], lr=0.1)
