"""An embedding told apart from many others that it is compared with."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Contrast(torch.autograd.Function):
    """Noise-contrastive loss of each item, with the gradient made ahead.

    ``-log f(x[i, own_i]) - sum_j counts[i, j] log(1 - f(x[i, j]))`` with ``x = anchors bank^T / temperature - shift``
    and f the logistic function. Beside its result the forward pass keeps one gradient in the size of the anchors; for a
    moment it holds three matrices ``(B, items)``.
    """

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, bank: Tensor, own: Tensor, counts: Tensor, temperature: float, shift: Tensor
    ) -> Tensor:
        """Values ``(B,)``."""
        own = own[:, None]
        scores = anchors @ bank.T / temperature - shift
        positive = scores.gather(1, own)
        values = -logsigmoid(positive).squeeze(1) - (counts * logsigmoid(-scores)).sum(dim=1)
        if ctx.needs_input_grad[0]:
            slopes = scores.sigmoid_().mul_(counts).scatter_add_(1, own, -(-positive).sigmoid())
            ctx.save_for_backward(slopes @ bank / temperature)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The anchors' gradient.

        Raises:
            RuntimeError: it is itself to be differentiated, for which nothing was kept.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("the loss crd has no second derivative: its backward was called with create_graph=True")
        (slopes,) = ctx.saved_tensors
        return gradient[:, None] * slopes, None, None, None, None, None


def contrast(
    anchors: Tensor, bank: Tensor, own: Tensor, counts: Tensor, *, temperature: float, shift: Tensor
) -> Tensor:
    """How badly each anchor is told apart: from its own row of a bank not at all, from its negatives well.

    Args:
        anchors: ``(B, D)``.
        bank: ``(items, D)``; no gradient flows into it.
        own: the row that belongs to each anchor, ``(B,)`` int64.
        counts: how often each row is a negative of each anchor, ``(B, items)``.
        temperature: divides the inner products.
        shift: 0-dim, taken from them afterwards.

    Returns:
        ``(B,)``.
    """
    return cast("Tensor", Contrast.apply(anchors, bank, own, counts, temperature, shift))
