"""Normalization inside what a loss learns."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kdengine.api import Loss
from kdengine.losses.arguments import check_choice

Norm = Literal["batch", "group", "none"]
NORMS = ("batch", "group", "none")


def choose_norm(loss: Loss, name: str, norm: Norm) -> None:
    """Let a loss that normalizes over the batch have the scope ``"item"`` where it does not.

    Args:
        loss: its class has the scope ``"batch"``.
        name: of the loss, for messages.
        norm: ``batch`` as published; ``group`` normalizes each item over its channels and positions; ``none``.

    Raises:
        ConfigurationError: the choice is unknown.
    """
    check_choice(name, "norm", norm, NORMS)
    if norm != "batch":
        loss.scope = "item"  # type: ignore[misc]  # without statistics of the batch, every item stands alone


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """The normalization of maps with so many channels."""
    if norm == "batch":
        return BatchNorm(channels)
    return nn.GroupNorm(1, channels) if norm == "group" else nn.Identity()


class BatchNorm(nn.Module):
    """Batch normalization by the statistics of the batch, always.

    A loss is never evaluated outside of training, so there are no running statistics to keep. Of a single value in each
    channel (one item with one position) nothing can be said: it becomes the bias, and gets no gradient.

    Args:
        channels: of the maps.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        if maps.numel() == maps.shape[1]:
            return (maps - maps) * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return F.batch_norm(maps, None, None, self.weight, self.bias, training=True, eps=self.eps)


def connector(norm: Norm, channels: int, wanted: int) -> nn.Sequential:
    """A 1x1 convolution without bias and its normalization.

    Its weights are normal with the variance ``2 / wanted``, as in the published code of OFD and AB.
    """
    convolution = nn.Conv2d(channels, wanted, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, make_norm(norm, wanted))
