"""How a model is called, and where its logits are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def call_model(module: Callable[..., Any], inputs: Any) -> Any:
    """Run a model on a batch's inputs: keywords for a mapping, positions for a sequence."""
    if isinstance(inputs, Tensor):  # the common case first: asking for a Mapping runs Python code of its own
        return module(inputs)
    if isinstance(inputs, Mapping):
        return module(**inputs)
    if isinstance(inputs, tuple | list):
        return module(*inputs)
    return module(inputs)


def find_logits(output: Any) -> Tensor | None:
    """The logits of a model's output: a tensor, ``.logits``, ``["logits"]`` or item 0; None when there are none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    else:
        found = output[0] if isinstance(output, tuple | list) and output else None
    return found if isinstance(found, Tensor) else None
