"""Copies of models: of those too that hold tensors which a hook computes from their parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdengine.api.errors import ConfigurationError

M = TypeVar("M", bound=nn.Module)


def copied(module: M, memo: dict[int, Any] | None = None) -> M:
    """A deep copy, also of a model with ``weight_norm`` or pruning.

    These keep a weight beside its parameters that a hook computes anew before every forward pass. It has a graph, with
    which PyTorch copies no tensor: the copy begins with its value alone.

    Args:
        module: the model.
        memo: what has been copied already, as for ``copy.deepcopy``.

    Raises:
        ConfigurationError: a parameter has no shape yet, so that a copy would get other weights.

    Example:
        >>> model = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> copied(model).weight.equal(model.weight)
        True
    """
    refuse_lazy(module)
    with _without_graphs(module):
        return copy.deepcopy(module, memo)


def refuse_lazy(module: nn.Module) -> None:
    """Refuse parameters that get their shape and values in the first forward pass.

    Raises:
        ConfigurationError: there is one.
    """
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ConfigurationError(
            f"{lazy[0]!r} of the {type(module).__name__} has no shape yet, and a copy or a checkpoint of it would hold "
            "nothing; run a batch through the model before it is given to the engine"
        )


@contextmanager
def _without_graphs(module: nn.Module) -> Iterator[None]:
    """Attributes that are computed tensors are their values while the context lasts."""
    computed = [
        (own.__dict__, name, value)
        for own in module.modules()
        for name, value in own.__dict__.items()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    for attributes, name, value in computed:
        attributes[name] = value.detach()
    try:
        yield
    finally:
        for attributes, name, value in computed:
            attributes[name] = value


def follow_shapes(copy: nn.Module, module: nn.Module) -> None:
    """Take over buffers that a module has made, or that have got another shape, since it was copied.

    Observers of a quantization do so, and modules that make a cache in their first forward pass.
    """
    for own, given in zip(copy.modules(), module.modules(), strict=False):
        for name, buffer in given._buffers.items():
            present = own._buffers.get(name)
            if buffer is not None and (present is None or present.shape != buffer.shape):
                own._buffers[name] = buffer.detach().clone()
        own._non_persistent_buffers_set |= given._non_persistent_buffers_set
