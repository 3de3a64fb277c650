"""Neuron selectivity transfer: which positions the channels of a layer select."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdengine.api import Batch
from kdengine.losses.arguments import check_choice, check_number, check_whole
from kdengine.losses.hints.maps import require_maps, same_size, unit
from kdengine.losses.hints.pairs import Pair, Paths
from kdengine.losses.hints.pairwise import PairwiseLoss

Kernel = Literal["polynomial", "linear", "gaussian"]
KERNELS = ("polynomial", "linear", "gaussian")


class NST(PairwiseLoss):
    """Maximum mean discrepancy between the selectivity patterns of student and teacher (neuron selectivity transfer).

    Every channel of a map is one sample: its H W activations, divided by their Euclidean length. With samples s_i of C
    channels of the student and t_j of C' of the teacher, for each item::

        MMD^2 = 1/C^2 sum_ij k(s_i, s_j) + 1/C'^2 sum_ij k(t_i, t_j) - 2/(C C') sum_ij k(s_i, t_j)

        polynomial   k(x, y) = (x . y + offset)^degree
        linear       k(x, y) = x . y
        gaussian     k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma^2 = mean |x - y|^2 over all pairs of samples

    summed over pairs of layers. The means over channels are the paper's; its factor ``lambda / 2`` is the weight of
    this loss, which Tian et al. 2020 set to 50 for the polynomial kernel. The term of the teacher alone, which has no
    gradient, is kept, so that the value is 0 where both sets of patterns agree. The paper does not say which pairs
    sigma^2 is the mean over: here the C + C' samples of an item, each with each and with itself; the gradient goes
    through it.

    A channel of zeros selects nothing: it is a sample of zeros and gets no gradient. Memory: (C + C')^2 numbers per
    item.

    Shapes:
        maps ``(B, C, H, W)``; channels may differ, and of different sizes the larger map is average-pooled.

    References:
        Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, sections 3
        and 4; arXiv:1707.01219

    Args:
        student: paths of modules of the student; see :class:`~kdengine.losses.hints.pairs.FeatureLoss`.
        teacher: paths of modules of the teacher, as many.
        kernel: ``polynomial``, ``linear`` or ``gaussian``.
        degree: d of the polynomial kernel.
        offset: c of the polynomial kernel, at least 0.

    Example:
        >>> NST(student="layer3", teacher="layer3").kernel
        'polynomial'
    """

    at_equality: ClassVar[Literal["zero", "minimum"] | None] = "zero"

    def __init__(
        self, student: Paths, teacher: Paths, kernel: Kernel = "polynomial", degree: int = 2, offset: float = 0.0
    ) -> None:
        super().__init__(student, teacher)
        check_choice("nst", "kernel", kernel, KERNELS)
        check_whole("nst", "degree", degree, least=1)
        check_number("nst", "offset", offset, least=0.0)
        self.kernel = kernel
        self.degree = degree
        self.offset = offset

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """Both must be maps."""
        require_maps(*pair)
        return super().prepare(pair, names, example)

    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module) -> Tensor:
        """The squared discrepancy of each item, ``(B,)``."""
        s, t = (unit(feature.flatten(2)) for feature in same_size(student, teacher))
        if self.kernel != "gaussian":
            return self._mean(s, s) + self._mean(t, t) - 2.0 * self._mean(s, t)
        within, among, between = distances(s, s), distances(t, t), distances(s, t)
        everything = within.sum(dim=(1, 2)) + among.sum(dim=(1, 2)) + 2.0 * between.sum(dim=(1, 2))
        width = 2.0 * everything / (s.shape[1] + t.shape[1]) ** 2
        width = torch.where(width > 0, width, 1.0).view(-1, 1, 1)
        means = [torch.exp(-squares / width).mean(dim=(1, 2)) for squares in (within, among, between)]
        return means[0] + means[1] - 2.0 * means[2]

    def _mean(self, first: Tensor, second: Tensor) -> Tensor:
        """The mean of a kernel of inner products over all pairs of samples, ``(B,)``."""
        products = first @ second.transpose(1, 2)
        if self.kernel == "polynomial":
            products = (products + self.offset).pow(self.degree)
        return products.mean(dim=(1, 2))


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances of samples ``(B, C, D)`` and ``(B, C', D)``: ``(B, C, C')``.

    Example:
        >>> distances(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]))
        tensor([[[25.,  0.]]])
    """
    ours, theirs = (samples.square().sum(dim=-1) for samples in (first, second))
    return ours[:, :, None] + theirs[:, None, :] - 2.0 * first @ second.transpose(1, 2)
