"""What losses on features do to a feature: pool maps to one size, give vectors unit length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kdengine.api import ConfigurationError

Pool = Literal["average", "max"]
POOLS = ("average", "max")


def require_maps(*features: Tensor) -> None:
    """Refuse features that are no maps ``(B, C, H, W)``.

    Raises:
        ConfigurationError: one is none; the base class adds the loss, the paths and the shapes.
    """
    if any(feature.ndim != 4 for feature in features):
        raise ConfigurationError("expected feature maps (B, C, H, W) in both models")


def pooled(feature: Tensor, size: Sequence[int], pool: Pool = "average") -> Tensor:
    """Take the means or maxima of a map over the cells of a grid; in a finer grid each cell repeats a value.

    Args:
        feature: ``(B, C, H, W)``.
        size: height and width of the grid. Cells overlap where they do not divide the map's, as those of
            :func:`torch.nn.functional.adaptive_avg_pool2d`.
        pool: ``average`` or ``max``.

    Returns:
        ``(B, C, *size)``; the feature itself where it has that size.

    Example:
        >>> pooled(torch.arange(4.0).view(1, 1, 2, 2), (1, 2))
        tensor([[[[1., 2.]]]])
        >>> pooled(torch.arange(4.0).view(1, 1, 2, 2), (1, 2), "max")
        tensor([[[[2., 3.]]]])
    """
    height, width = feature.shape[-2:]
    rows, columns = size
    if (height, width) == (rows, columns):
        return feature
    if height % rows == 0 and width % columns == 0:  # the same numbers, with a deterministic gradient on CUDA
        fixed = F.avg_pool2d if pool == "average" else F.max_pool2d
        return fixed(feature, (height // rows, width // columns))
    adaptive = F.adaptive_avg_pool2d if pool == "average" else F.adaptive_max_pool2d
    return adaptive(feature, (rows, columns))


def same_size(first: Tensor, second: Tensor, pool: Pool = "average") -> tuple[Tensor, Tensor]:
    """Pool two maps to the smaller height and the smaller width of both.

    Example:
        >>> [tuple(m.shape) for m in same_size(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 4, 4))]
        [(2, 3, 4, 4), (2, 5, 4, 4)]
    """
    size = [min(pair) for pair in zip(first.shape[-2:], second.shape[-2:], strict=True)]
    return pooled(first, size, pool), pooled(second, size, pool)


def in_scale(feature: Tensor, dims: Sequence[int]) -> Tensor:
    """A feature divided by its largest magnitude over ``dims``, so that no square over- or underflows.

    The divisor is taken as constant: the gradient is right for what does not depend on the feature's scale.
    """
    largest = feature.detach().abs().amax(tuple(dims), keepdim=True)
    return feature / torch.where(largest > 0, largest, 1.0)


def unit(feature: Tensor, dim: int = -1) -> Tensor:
    """Vectors along ``dim``, each divided by its Euclidean length.

    A vector of zeros has no direction: it stays as it is, and its gradient is zero.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-30, 4e-30]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000],
                [0.6000, 0.8000]])
    """
    scaled = in_scale(feature, (dim,))
    squares = scaled.square().sum(dim=dim, keepdim=True)
    directed = squares > 0
    return torch.where(directed, scaled / torch.where(directed, squares, 1.0).sqrt(), 0.0)
