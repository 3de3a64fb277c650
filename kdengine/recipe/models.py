"""The models of a run, with their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdengine._paths import expanded
from kdengine.api import CheckpointError, ConfigurationError
from kdengine.engine import random
from kdengine.engine.batching import find_logits
from kdengine.engine.modes import evaluation_mode
from kdengine.engine.wrappers import fitted
from kdengine.recipe.binder import Bound
from kdengine.recipe.teaching import ModelPlan
from kdengine.recipe.weights import read_state


def make_model(
    bound: Bound,
    facts: dict[str, Any],
    *,
    seed: int,
    role: str,
    path: str | None = None,
    transforms: Sequence[Bound] = (),
) -> nn.Module:
    """A new model whose first weights are a function of (seed, role).

    Args:
        bound: the model's factory.
        facts: ``classes``, ``input_shape`` and ``input_dtype`` of the data.
        seed: of the run.
        role: ``student`` or ``teacher``; a student alone begins as the distilled one does.
        path: of its table, for messages; the role when absent.
        transforms: what its inputs go through before it sees them.
    """
    title = f"[{path or role}] {bound.component.name}"
    random.seed_all(seed, "weights", role)
    try:
        model = bound(**facts)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(f"{title} cannot be made: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"{title} gave a {type(model).__name__}, expected an nn.Module")
    transform_inputs(model, transforms)
    _try_input(model, facts, title)
    return model


def teaching_model(model: ModelPlan, facts: dict[str, Any], *, seed: int | None = None) -> nn.Module:
    """A model that teaches, as it is before any training: from its checkpoint, where it has one.

    Args:
        model: its plan.
        facts: of the data.
        seed: of its first weights; that of its own training when absent.
    """
    table = model.table
    own = 0 if table.train is None else table.train.seed
    module = make_model(
        model.factory,
        facts,
        seed=own if seed is None else seed,
        role="teacher",
        path=model.role,
        transforms=model.transforms,
    )
    if table.checkpoint is not None:
        load_weights(module, table.checkpoint, model.role)
    return module


def transform_inputs(model: nn.Module, transforms: Sequence[Bound]) -> None:
    """Let a model see its inputs through transforms, wherever it is called; its weights keep their names."""
    if not transforms:
        return
    model.register_forward_pre_hook(_InputTransforms(transforms))


class _InputTransforms:
    """A hook that puts a model's first input through transforms.

    Attributes:
        identity: the transforms and their arguments: a cache of the model's outputs depends on them.
    """

    def __init__(self, transforms: Sequence[Bound]) -> None:
        self.steps = [make() for make in transforms]
        self.identity = "; ".join(f"{make.component.qualified} {dict(make.values)!r}" for make in transforms)

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        first, *others = inputs
        for step in self.steps:
            first = step(first)
        return (first, *others)


@torch.no_grad()
def _try_input(model: nn.Module, facts: dict[str, Any], title: str) -> None:
    """Run a model once on a blank input of the data's shape, so that a mismatch is said before training."""
    shape = facts["input_shape"]
    try:
        with evaluation_mode(model):
            logits = find_logits(model(torch.zeros(1, *shape, dtype=facts["input_dtype"])))
    except Exception as error:
        raise ConfigurationError(f"{title} does not take the data's inputs of shape {tuple(shape)}: {error}") from error
    if logits is None or logits.ndim != 2:
        seen = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise ConfigurationError(f"{title} gave {seen} for one input, expected (1, {facts['classes']})")


def load_weights(model: nn.Module, path: str | Path, role: str) -> None:
    """Read a state dict into a model: safetensors, or what ``torch.save`` wrote, without running any pickle code.

    Raises:
        CheckpointError: the file is missing, unreadable, or of another model.
    """
    path = expanded(path)
    state = fitted(read_state(path, role), model)
    present = model.state_dict()
    wrong = [f"missing {name}" for name in present if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in present]
    wrong += [
        f"{name} is {tuple(value.shape)}, expected {tuple(present[name].shape)}"
        for name, value in state.items()
        if name in present and value.shape != present[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:6]) + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else "")
        raise CheckpointError(f"[{role}] {path} does not fit a {type(model).__name__}: {shown}")
    try:
        model.load_state_dict(state)
    except (RuntimeError, NotImplementedError) as error:  # sparse or quantized tensors, for instance
        raise CheckpointError(f"[{role}] {path} does not fit a {type(model).__name__}: {error}") from error
