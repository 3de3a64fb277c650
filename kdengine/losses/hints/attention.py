"""Attention transfer: where the activations of a layer are large."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdengine.api import Batch
from kdengine.losses.arguments import check_choice, check_number
from kdengine.losses.hints.maps import in_scale, require_maps, same_size, unit
from kdengine.losses.hints.pairs import Pair, Paths
from kdengine.losses.hints.pairwise import PairwiseLoss


class Attention(PairwiseLoss):
    """The student's spatial attention maps regress the teacher's (attention transfer, AT).

    The attention of a map A is ``Q = mean_c |A_c|^p``, one number per position. With each Q divided by its Euclidean
    length, and the sum over pairs of layers::

        distance = "square"   sum_j 1/(H W) || Q_s / |Q_s| - Q_t / |Q_t| ||_2^2
        distance = "norm"     sum_j         || Q_s / |Q_s| - Q_t / |Q_t| ||_2

    The norm is equation 2 of the paper without its factor ``beta / 2``, which is the weight of this loss. The default
    is the square averaged over positions: it is what the published code computes, and what its weight, 1000, is for.
    (The paper's beta is 1000 divided by the number of positions and by the batch size, about 0.1.) The mean over
    channels in place of the sum changes nothing after the division.

    A map of zeros has no direction: its Q is 0, and it gets no gradient.

    Shapes:
        maps ``(B, C, H, W)``; channels may differ, and of different sizes the larger map is average-pooled.

    References:
        Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
        Networks via Attention Transfer", ICLR 2017, equation 2; arXiv:1612.03928

    Args:
        student: paths of modules of the student; see :class:`~kdengine.losses.hints.pairs.FeatureLoss`.
        teacher: paths of modules of the teacher, as many.
        p: power of the activations, at least 1.
        distance: ``square`` or ``norm``.

    Example:
        >>> Attention(student="layer?", teacher="layer?").needs.student_features
        ('layer?',)
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"

    def __init__(
        self, student: Paths, teacher: Paths, p: float = 2.0, distance: Literal["square", "norm"] = "square"
    ) -> None:
        super().__init__(student, teacher)
        check_number("attention", "p", p, least=1.0)
        check_choice("attention", "distance", distance, ("square", "norm"))
        self.p = p
        self.distance = distance

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """Both must be maps."""
        require_maps(*pair)
        return super().prepare(pair, names, example)

    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module) -> Tensor:
        """The distance of the attention maps of each item, ``(B,)``."""
        ours, theirs = (self.attention(feature) for feature in same_size(student, teacher))
        if self.distance == "norm":
            length: Tensor = torch.linalg.vector_norm(ours - theirs, dim=1)
            return length
        return (ours - theirs).square().mean(dim=1)

    def attention(self, feature: Tensor) -> Tensor:
        """``Q / |Q|`` of a map ``(B, C, H, W)``, ``(B, H W)``."""
        powers = in_scale(feature, (1, 2, 3)).abs().pow(self.p)
        return unit(powers.mean(dim=1).flatten(1))
