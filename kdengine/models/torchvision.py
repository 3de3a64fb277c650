"""Any classifier of torchvision, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdengine.api import ConfigurationError
from kdengine.api.errors import nearest


def torchvision(name: str, classes: int, weights: str | None = None) -> nn.Module:
    """A torchvision classifier.

    Args:
        name: the model's name in torchvision, such as ``resnet18`` or ``vit_b_16``.
        classes: number of classes; with ``weights`` of another number the output layer is replaced by a fresh one.
        weights: name of pretrained weights (``DEFAULT``, ``IMAGENET1K_V1``), downloaded on first use; None for none.

    Returns:
        the model.

    Raises:
        ConfigurationError: torchvision is missing, or does not know the name or the weights.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise ConfigurationError("model 'torchvision' needs torchvision: pip install 'kdengine[vision]'") from error
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigurationError(f"torchvision has no classifier named {name!r}: {nearest(name, known)}")
    if weights is None:
        model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
        return model
    choice = _pick(models.get_model_weights(name), name, weights)
    model = models.get_model(name, weights=choice)
    pretrained = len(choice.meta["categories"])
    if pretrained != classes:
        replace_heads(model, pretrained, classes)
    return model


def _pick(choices: Any, name: str, weights: str) -> Any:
    key = weights.rpartition(".")[2]
    if key not in choices.__members__:
        raise ConfigurationError(
            f"torchvision has no weights {weights!r} for {name}: {nearest(key, choices.__members__)}"
        )
    return choices[key]


def replace_heads(model: nn.Module, before: int, after: int) -> None:
    """Replace every output layer (linear, or 1x1 convolution) with ``before`` outputs by a fresh one with ``after``.

    Auxiliary heads count as well; no classifier of torchvision has a hidden layer as wide as its number of classes.

    Args:
        model: the model, changed in place.
        before: number of outputs that marks an output layer.
        after: number of outputs of its replacement.
    """
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and module.out_features == before:
            fresh: nn.Module = nn.Linear(module.in_features, after, bias=module.bias is not None)
        elif isinstance(module, nn.Conv2d) and module.out_channels == before and module.kernel_size == (1, 1):
            fresh = nn.Conv2d(module.in_channels, after, 1, bias=module.bias is not None)
        else:
            continue
        model.set_submodule(path, fresh)
