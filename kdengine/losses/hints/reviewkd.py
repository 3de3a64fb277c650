"""Knowledge review: shallow layers of a teacher guide deeper layers of the student too."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kdengine.api import Batch, ConfigurationError
from kdengine.losses.arguments import check_whole
from kdengine.losses.hints.maps import pooled
from kdengine.losses.hints.norms import Norm, choose_norm, make_norm
from kdengine.losses.hints.pairs import Pair, Paths
from kdengine.losses.hints.pairwise import PairwiseLoss

LEVELS = (4, 2, 1)
"""Sizes of the pyramid of the hierarchical context loss."""


class ReviewKD(PairwiseLoss):
    """Fused features of the student regress the teacher's on a pyramid (knowledge review).

    From the deepest pair to the shallowest, an attention based fusion joins the student's map x, through a 1x1
    convolution to a common width, with what the deeper fusion left, u, resized to x (nearest neighbour)::

        (a, b) = sigmoid(conv1x1([x, u]))          two maps of one channel each
        u <- a x + b u                             resized to the teacher's map, and given to the next pair
        s = conv3x3(u)                             with the teacher's channels

    both convolutions with batch normalization behind. Each s is compared with the teacher's t by the hierarchical
    context loss, with D_0 the squared difference averaged over elements and D_l that of both maps averaged over l x l
    cells::

        HCL = (D_0 + D_4 / 2 + D_2 / 4 + D_1 / 8) / (1 + 1/2 + 1/4 + 1/8)

    of which levels that are not smaller than the map are left out; those that are left have the weights 1/2, 1/4, ...
    in their order. Each item's value is the sum over pairs. The paper gives no reduction; formulas and means are those
    of the published code, whose weights on CIFAR-100 are from 0.6 to 8, mostly 5, after a linear rise over 20 epochs.
    It takes the teacher's features before the activation, of a CIFAR ResNet or one of torchvision
    ``layer1.8.relu:input``, and the student's behind it.

    Batch normalization makes the value depend on the whole batch; with another ``norm`` the scope is ``"item"``.

    Shapes:
        maps ``(B, C, H, W)``, or vectors ``(B, D)``, which are maps of one position (the published setting has the
        pooled features before the classifier as its deepest pair). Channels and sizes may differ.

    References:
        Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3; arXiv:2104.09044

    Args:
        student: paths of modules of the student, from shallow to deep; see
            :class:`~kdengine.losses.hints.pairs.FeatureLoss`.
        teacher: paths of modules of the teacher, as many, from shallow to deep.
        width: channels inside the fusions; None for those of the student's deepest feature, at most 512.
        norm: ``batch`` as published, ``group`` (each item by itself) or ``none``.

    Example:
        >>> ReviewKD(["layer?", "fc:input"], ["layer?.8.relu:input", "fc:input"]).scope  # under resnet56
        'batch'
    """

    scope: ClassVar[Literal["item", "batch"]] = "batch"

    def __init__(self, student: Paths, teacher: Paths, width: int | None = None, norm: Norm = "batch") -> None:
        super().__init__(student, teacher)
        if width is not None:
            check_whole("reviewkd", "width", width, least=1)
        choose_norm(self, "reviewkd", norm)
        self.width = width
        self.norm: Norm = norm

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """The fusion of a pair."""
        if any(feature.ndim not in (2, 4) for feature in pair):
            raise ConfigurationError("expected feature maps (B, C, H, W) or vectors (B, D) in both models")
        deepest = self.pairs(example)[-1].student
        width = self.width or min(512, deepest.shape[1])
        last = names == self.names(example)[-1]
        return Fusion(pair.student.shape[1], width, pair.teacher.shape[1], fuse=not last, norm=self.norm)

    def total(self, batch: Batch) -> Tensor:
        """The sum over pairs of each item's hierarchical context loss, ``(B,)``."""
        deeper: Tensor | None = None
        values = []
        for fusion, pair in zip(self.learned[::-1], self.pairs(batch)[::-1], strict=True):
            student, teacher = (as_map(feature) for feature in pair)
            fused, deeper = cast("Fusion", fusion)(student, deeper, teacher.shape[-2:])
            values.append(hierarchical(fused, teacher))
        return self.combine(values)


class Fusion(nn.Module):
    """The attention based fusion (ABF) of one pair.

    Args:
        channels: of the student's map.
        width: inside, of what is handed on.
        wanted: channels of the teacher's map.
        fuse: whether there is something deeper to fuse with.
        norm: behind the convolutions.
    """

    def __init__(self, channels: int, width: int, wanted: int, *, fuse: bool, norm: Norm) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), make_norm(norm, width))
        self.leave = nn.Sequential(nn.Conv2d(width, wanted, 3, padding=1, bias=False), make_norm(norm, wanted))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuse else None
        for convolution in (self.enter[0], self.leave[0]):
            nn.init.kaiming_uniform_(cast("nn.Conv2d", convolution).weight, a=1)

    def forward(self, student: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """A map like the teacher's, and what is handed to the next pair.

        Args:
            student: ``(B, channels, H, W)``.
            deeper: ``(B, width, ...)`` of the pair before, or None at the deepest.
            size: height and width of the teacher's map.
        """
        inner: Tensor = self.enter(student)
        if self.attention is not None and deeper is not None:
            deeper = resized(deeper, inner.shape[-2:])
            gates = torch.sigmoid(self.attention(torch.cat([inner, deeper], dim=1)))
            inner = gates[:, :1] * inner + gates[:, 1:] * deeper
        inner = resized(inner, size)
        return self.leave(inner), inner


def resized(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps in another size, by the nearest neighbour."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, tuple(size), mode="nearest")


def as_map(feature: Tensor) -> Tensor:
    """A vector as a map of one position."""
    return feature[:, :, None, None] if feature.ndim == 2 else feature


def hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss (HCL) of each item, ``(B,)``, of two maps of one shape.

    Example:
        >>> hierarchical(torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
        tensor([1.])
    """
    total, weight, weights = squared(student, teacher), 1.0, 1.0
    for level in LEVELS:
        if level < min(student.shape[-2:]):
            weight /= 2.0
            weights += weight
            cells = (level, level)
            total = total + weight * squared(pooled(student, cells), pooled(teacher, cells))
    return total / weights


def squared(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of each item, ``(B,)``."""
    return (student - teacher).square().flatten(1).mean(dim=1)
