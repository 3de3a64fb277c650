"""How a model is called, and where its logits are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torch.nn.utils.rnn import PackedSequence

from kdengine.api.inputs import explained
from kdengine.api.labels import IGNORE_INDEX


def call_model(module: Callable[..., Any], inputs: Any) -> Any:
    """Run a model on a batch's inputs: keywords for a mapping, positions for a sequence.

    Raises:
        InputsError: it does not take them.
    """
    try:
        if isinstance(inputs, Tensor):  # the common case first: asking for a Mapping runs Python code of its own
            return module(inputs)
        if isinstance(inputs, Mapping):
            return module(**inputs)
        if isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence):
            return module(*inputs)
        return module(inputs)
    except Exception as error:
        if (problem := explained(module, inputs, error)) is not None:
            raise problem from error
        raise


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


def classes_last(output: Any) -> Tensor | None:
    """Read dense predictions ``(N, C, ...)``, as of a segmentation model, as logits ``(N, ..., C)``.

    For ``Engine(output=kdengine.classes_last)``; every pixel is then a row of logits, which losses and metrics compare
    with labels ``(N, ...)``.

    Args:
        output: what a model returned: a tensor, or what holds logits where they usually are.

    Example:
        >>> import torch
        >>> classes_last(torch.zeros(2, 5, 8, 9)).shape
        torch.Size([2, 8, 9, 5])
    """
    logits = find_logits(output)
    return None if logits is None else logits.movedim(1, -1)


def next_token(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Shift labels ``(B, T)`` that are a causal language model's own tokens to those that its logits predict.

    For ``Engine(labels=kdengine.next_token)``: ``labels[:, t]`` becomes the token at t + 1, and the last position,
    which predicts a token that is not there, has none. Ignored positions stay ignored.

    Args:
        labels: the input tokens, or ``ignore_index``.
        ignore_index: of the last position.

    Example:
        >>> import torch
        >>> next_token(torch.tensor([[5, 6, 7]]))
        tensor([[   6,    7, -100]])
    """
    return F.pad(labels[..., 1:], (0, 1), value=ignore_index)
