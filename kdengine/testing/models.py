"""A model to stand behind the outputs of a random batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdengine.api.features import INPUT


class StandIn(nn.Module):
    """A classifier in whose training mode everything differs, with a module at each path of a feature."""

    def __init__(self, inputs: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.classify = nn.Linear(max(1, inputs), max(1, classes), device="meta").to_empty(device="cpu")
        self.drop = nn.Dropout(0.5)
        _randomize(self.classify, generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, V)`` of inputs ``(B, D)``."""
        logits: Tensor = self.classify(self.drop(inputs.to(self.classify.weight.dtype)))
        return logits.to(inputs.dtype)


def stand_in(
    inputs: int, classes: int, features: Mapping[str, tuple[int, ...]], generator: torch.Generator
) -> nn.Module:
    """A model with a normalization at each path, as wide as the feature there.

    Args:
        inputs: width of the inputs.
        classes: number of logits.
        features: shape of each feature by its path, without the batch.
        generator: of all weights.

    >>> model = stand_in(3, 5, {"layer1.norm": (8, 4, 4)}, torch.Generator())
    >>> model.get_submodule("layer1.norm").num_features
    8
    """
    model = StandIn(inputs, classes, generator)
    for path in sorted(path.removesuffix(INPUT) for path in features):
        shape = features.get(path, features.get(path + INPUT, ()))
        _place(model, path, _normalization(shape, generator))
    return model


def _place(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path whose parents may not exist."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in dict(model.named_children()):
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    if name and name not in dict(model.named_children()):
        model.add_module(name, module)


def _normalization(shape: tuple[int, ...], generator: torch.Generator) -> nn.Module:
    kinds = {1: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}
    kind = kinds.get(len(shape))
    module: nn.Module = nn.LayerNorm(shape[-1] if shape else 1) if kind is None else kind(shape[0])
    _randomize(module, generator)
    return module


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
