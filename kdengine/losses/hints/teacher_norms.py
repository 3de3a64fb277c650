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
    ``nn.Sequential`` and for the output of one without parameters, such as a ReLU, the module before it.

    Args:
        model: the teacher.
        path: of the feature, without wildcards.

    Raises:
        ConfigurationError: there is none.

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
    """The batch normalization just before a module of an ``nn.Sequential``, which runs its parts in their order."""
    parent, _, name = path.rpartition(".")
    container = model.get_submodule(parent)
    names = [key for key, _ in container.named_children()]
    if not isinstance(container, nn.Sequential) or name not in names or names.index(name) == 0:
        return None
    return last_inside(container[names.index(name) - 1])


def is_normalization(module: nn.Module) -> TypeGuard[Normalization]:
    """Whether a module is a batch normalization, frozen or not, with a factor and an offset for each channel."""
    parts = (getattr(module, name, None) for name in ("weight", "bias", "running_mean", "running_var"))
    return all(isinstance(part, Tensor) for part in parts)
