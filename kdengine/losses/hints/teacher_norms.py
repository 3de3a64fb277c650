"""The batch normalization in a teacher from which a feature comes."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from kdengine.api import ConfigurationError
from kdengine.api.features import INPUT


class Normalization(nn.Module):
    """What is asked of a batch normalization: the factor and the offset of each channel, ``(C,)``."""

    weight: Tensor
    bias: Tensor


def normalization_at(model: nn.Module, path: str) -> Normalization:
    """The batch normalization that gave the feature at a path.

    It is the module itself; or the last one directly inside it, or inside the last of its parts that has one (so that
    of a residual block it is that of the branch, not that of the shortcut); or, for the input of a module of an
    ``nn.Sequential`` and for the output of one without parameters, such as a ReLU, the module before it. For the last
    activation of any other block (``layer3.2.relu:input``) it is the last one directly inside that block, that of the
    branch.

    Args:
        model: the teacher.
        path: of the feature, without wildcards.

    Raises:
        ConfigurationError: there is none, or one of several.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> normalization_at(model, "2") is normalization_at(model, "2:input") is model[1]
        True
    """
    of_input = path.endswith(INPUT)
    name = path.removesuffix(INPUT)
    module = model.get_submodule(name)
    found = None if of_input else last_inside(module)
    if found is None and (of_input or not any(True for _ in module.parameters())):
        found = before(model, name)
    if found is None:
        raise ConfigurationError(
            f"no batch normalization with a weight and a bias can be seen to give the teacher's {path!r}; "
            "name it, or give a number: margin"
        )
    return found


def last_inside(module: nn.Module) -> Normalization | None:
    """The module itself, or its last batch normalization."""
    if is_normalization(module):
        return module
    parts = list(module.children())[::-1]
    for part in parts:
        if is_normalization(part):
            return part
    return next((found for part in parts if (found := last_inside(part)) is not None), None)


def before(model: nn.Module, path: str) -> Normalization | None:
    """The batch normalization just before a module of an ``nn.Sequential``, which runs its parts in their order.

    In any other block only an activation is looked at.
    """
    parent, _, name = path.rpartition(".")
    container = model.get_submodule(parent)
    names = [key for key, _ in container.named_children()]
    if name not in names:
        return None
    if not isinstance(container, nn.Sequential):
        return before_activation(container, name, parent)
    return last_inside(container[names.index(name) - 1]) if names.index(name) > 0 else None


def before_activation(block: nn.Module, name: str, path: str) -> Normalization | None:
    """The batch normalization that a block's last activation runs behind: the last one directly inside the block.

    A block runs its parts in an order of its own. One activation may run behind each of several normalizations, as in
    torchvision's BasicBlock: what does not stand behind all of them is not guessed.

    Args:
        block: holds the activation.
        name: of the activation in the block.
        path: of the block.

    Raises:
        ConfigurationError: the activation may run behind one of several.
    """
    parts = dict(block.named_children())
    activations = [key for key, part in parts.items() if is_activation(part)]
    norms = [key for key, part in parts.items() if is_normalization(part)]
    if name not in activations or not norms:
        return None
    order = list(parts)
    behind_all = order.index(name) > order.index(norms[-1]) and name == activations[-1]
    if len(norms) > 1 and not behind_all:
        named = [f"{path}.{key}" if path else key for key in norms]
        raise ConfigurationError(
            f"the activation {name!r} may run behind each of the batch normalizations {', '.join(map(repr, named))}; "
            f"name the one before the feature with margin, a path for each pair: {named[-1]!r}, perhaps"
        )
    last = parts[norms[-1]]
    return last if is_normalization(last) else None


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's activations."""
    return type(module).__module__ == nn.ReLU.__module__


def is_normalization(module: nn.Module) -> TypeGuard[Normalization]:
    """Whether a module is a batch normalization, frozen or not, with a factor and an offset for each channel."""
    parts = (getattr(module, name, None) for name in ("weight", "bias", "running_mean", "running_var"))
    return all(isinstance(part, Tensor) for part in parts)
