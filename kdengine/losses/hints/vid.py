"""Variational information distillation: how well the student's features predict the teacher's."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kdengine.api import Batch, ConfigurationError
from kdengine.losses.arguments import check_number, check_whole
from kdengine.losses.hints.maps import same_size
from kdengine.losses.hints.pairs import Pair, Paths
from kdengine.losses.hints.pairwise import PairwiseLoss


class VID(PairwiseLoss):
    """A lower bound on the information that student and teacher share is raised (variational information distillation).

    The teacher's feature t is normal given the student's s: its mean is a learned function mu of s, its variance is
    learned for each channel, ``sigma_c^2 = log(1 + exp(alpha_c)) + eps``. With N elements of t, each item's value is,
    up to a constant, minus the logarithm of its density (equation 5; equation 6 for vectors) by element::

        1/N sum_chw 1/2 ( log sigma_c^2 + (t - mu(s))^2 / sigma_c^2 )

    summed over pairs of layers. The paper adds up the elements; the mean is that of the code of the authors, as Tian et
    al. 2020 use it with a weight of 1. The value may become negative. mu is three linear maps of the channels (1x1
    convolutions) without biases, with ReLUs between them.

    Shapes:
        maps ``(B, C, H, W)``: channels may differ, and of different sizes the larger map is average-pooled; or vectors
        ``(B, D)``, or tokens ``(B, N, D)`` of the same number.

    References:
        Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
        equations 5 and 6; arXiv:1904.05835

    Args:
        student: paths of modules of the student; see :class:`~kdengine.losses.hints.pairs.FeatureLoss`.
        teacher: paths of modules of the teacher, as many.
        hidden: channels inside mu; None for as many as the teacher's feature has.
        initial_variance: sigma^2 at the start, above ``eps``.
        eps: smallest variance, above 0.

    Example:
        >>> VID(student="layer3", teacher="layer3").initial_variance
        5.0
    """

    def __init__(
        self,
        student: Paths,
        teacher: Paths,
        hidden: int | None = None,
        initial_variance: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(student, teacher)
        if hidden is not None:
            check_whole("vid", "hidden", hidden, least=1)
        check_number("vid", "eps", eps, above=0.0)
        check_number("vid", "initial_variance", initial_variance, above=eps)
        self.hidden = hidden
        self.initial_variance = initial_variance
        self.eps = eps

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """The distribution of the teacher's feature."""
        ours, theirs = (tuple(feature.shape[1:]) for feature in pair)
        maps = len(ours) == len(theirs) == 3
        if not maps and (len(ours) not in (1, 2) or len(ours) != len(theirs) or ours[:-1] != theirs[:-1]):
            raise ConfigurationError(
                "expected maps (B, C, H, W), vectors (B, D) or as many tokens (B, N, D) in both models"
            )
        axis = 0 if maps else -1
        above = self.initial_variance - self.eps
        alpha = above + math.log(-math.expm1(-above))  # the inverse of log(1 + exp(alpha))
        return Conditional(maps, ours[axis], self.hidden or theirs[axis], theirs[axis], alpha)

    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module) -> Tensor:
        """The negative log-density of each item by element, ``(B,)``."""
        normal = cast("Conditional", learned)
        if normal.maps:
            student, teacher = same_size(student, teacher)
        variance = F.softplus(normal.alpha) + self.eps
        if normal.maps:
            variance = variance.view(-1, 1, 1)
        error: Tensor = teacher - normal.mean(student)
        return 0.5 * (variance.log() + error.square() / variance).flatten(1).mean(dim=1)


class Conditional(nn.Module):
    """The mean of a teacher's feature given the student's, and what its variance is made of.

    Args:
        maps: whether the channels are dimension 1 of maps; else they are the last dimension.
        channels: of the student's feature.
        hidden: channels inside.
        wanted: channels of the teacher's feature.
        alpha: of every channel at the start.
    """

    def __init__(self, maps: bool, channels: int, hidden: int, wanted: int, alpha: float) -> None:
        super().__init__()
        self.maps = maps
        layers: list[nn.Module] = []
        for ours, theirs in ((channels, hidden), (hidden, hidden), (hidden, wanted)):
            layers += [
                nn.Conv2d(ours, theirs, 1, bias=False) if maps else nn.Linear(ours, theirs, bias=False),
                nn.ReLU(),
            ]
        self.mean = nn.Sequential(*layers[:-1])
        self.alpha = nn.Parameter(torch.full((wanted,), alpha))
