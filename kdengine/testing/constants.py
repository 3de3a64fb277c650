"""What a loss takes out of the graph, held at its value while the loss is computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdengine.testing.samples import apply

_DETACH = (Tensor.detach, torch.detach)


class Constants(TorchFunctionMode):
    """Notes what ``detach`` and each operation under ``torch.no_grad`` give.

    The operations inside an ``autograd.Function`` are its own: nothing of them is noted.

    Attributes:
        noted: copies of the values, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Any] = []
        self._without_graph = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            self._without_graph = not args[0] and (self._without_graph or torch.is_grad_enabled())
        constant = self._without_graph or (func in _DETACH and torch.is_grad_enabled())
        result = func(*args, **(kwargs or {}))
        return self.take(result) if constant else result

    def take(self, result: Any) -> Any:
        """What takes the place of a constant."""
        self.noted.append(apply(_copy, result))
        return result


class Replay(Constants):
    """Gives in their place what was noted before, in the same order.

    Args:
        constants: from a computation of the same operations.
    """

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self._values: Iterator[Any] = iter(constants.noted)

    def take(self, result: Any) -> Any:
        """The value that stood here before."""
        return apply(_copy, next(self._values, result))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone() if torch.is_grad_enabled() else tensor.detach().clone()
