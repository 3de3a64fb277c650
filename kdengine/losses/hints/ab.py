"""Activation boundaries: which neurons of a layer are active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kdengine.api import Batch, ConfigurationError, Scalar
from kdengine.losses.arguments import check_number
from kdengine.losses.hints.activation import warn_behind_activation
from kdengine.losses.hints.maps import same_size
from kdengine.losses.hints.norms import Norm, choose_norm, connector
from kdengine.losses.hints.pairs import Pair, Paths
from kdengine.losses.hints.pairwise import PairwiseLoss, halved


class AB(PairwiseLoss):
    """The student's neurons are active where the teacher's are, by a margin (activation boundaries, AB).

    With T the teacher's feature before its activation, and s the student's, through a 1x1 convolution and batch
    normalization where the channels differ, each item's value is (the alternative loss of the paper, equation 5)::

        sum_j 2^(j - n) sum_i max(0, m - s_i)^2  where T_i > 0,  max(0, m + s_i)^2  elsewhere       j = 1 .. n

    from the first pair to the last. The value is not 0 for a student that equals its teacher: it is within the margin
    that a neuron costs something.

    The sum over elements is the paper's, the weights of pairs are those of the published code, which sets the margin to
    1 and whose CIFAR-10 script multiplies the loss by 0.003: give the loss that weight. The paper trains the student by
    this loss alone first, then by labels or soft targets alone.

    Batch normalization makes the value depend on the whole batch; with another ``norm`` the scope is ``"item"``.

    Shapes:
        maps ``(B, C, H, W)``: channels may differ, and of different sizes the larger map is average-pooled; or features
        of any equal shapes.

    References:
        Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
        AAAI 2019, equation 5; arXiv:1811.03233

    Args:
        student: paths of modules of the student, from shallow to deep, that give features before the activation: of
            the CIFAR ResNets and of torchvision's the input of a block's ReLU, ``layer1.2.relu:input``. (``bn2`` is the
            branch without its shortcut.) See :class:`~kdengine.losses.hints.pairs.FeatureLoss`.
        teacher: paths of modules of the teacher, as many, before the activation too.
        margin: m, above 0.
        norm: of the student's projection: ``batch`` as published, ``group`` (each item by itself) or ``none``.

    Example:
        >>> AB(student="layer?.2.relu:input", teacher="layer?.8.relu:input").margin  # resnet20 under resnet56
        1.0
    """

    scope: ClassVar[Literal["item", "batch"]] = "batch"

    def __init__(self, student: Paths, teacher: Paths, margin: Scalar = 1.0, norm: Norm = "batch") -> None:
        super().__init__(student, teacher)
        check_number("ab", "margin", margin, above=0.0)
        choose_norm(self, "ab", norm)
        self.margin = margin
        self.norm: Norm = norm

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """The student's projection; none where the channels agree."""
        ours, theirs = (tuple(feature.shape[1:]) for feature in pair)
        maps = len(ours) == len(theirs) == 3
        if not maps and ours != theirs:
            raise ConfigurationError("expected feature maps (B, C, H, W) in both models, or equal shapes")
        warn_behind_activation("ab", names, pair)
        return connector(self.norm, ours[0], theirs[0]) if maps and ours[0] != theirs[0] else nn.Identity()

    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module) -> Tensor:
        """The squared distances of each item's neurons from their side of the margin, ``(B,)``."""
        if teacher.ndim == 4:
            student, teacher = same_size(student, teacher)
        active = torch.where(teacher > 0, 1.0, -1.0)
        return F.relu(self.margin - active * learned(student)).square().flatten(1).sum(dim=1)

    def combine(self, values: Sequence[Tensor]) -> Tensor:
        """All pairs as one: the last in full, each one before it with half the weight of the next."""
        return super().combine(halved(values))
