"""Overhaul of feature distillation: pre-activations, without what the teacher's activation discards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError
from kdengine.losses.arguments import check_number
from kdengine.losses.hints.activation import warn_behind_activation
from kdengine.losses.hints.maps import pooled, require_maps
from kdengine.losses.hints.norms import Norm, choose_norm, connector
from kdengine.losses.hints.pairs import Pair, Paths
from kdengine.losses.hints.pairwise import PairwiseLoss, halved
from kdengine.losses.hints.teacher_norms import normalization_at


class OFD(PairwiseLoss):
    """The student regresses the teacher's features before the activation, where they matter (overhaul, OFD).

    With t the teacher's pre-activation after a ReLU with a margin, ``t = max(T, m_c)``, and ``s = r(S)`` the student's
    through a 1x1 convolution and batch normalization, each item's value is the partial squared distance::

        sum_j 2^(j - n) sum_chw [s > t or t > 0] (s - t)^2          j = 1 .. n, from the first pair to the last

    Nothing is asked of a student that is below a negative target. The margin of a channel is the mean of its negative
    responses, which are taken as normal with mean mu and deviation sigma, the bias and the absolute weight of the
    teacher's batch normalization before the activation::

        m_c = E[T_c | T_c < 0] = mu - sigma phi(mu / sigma) / Phi(-mu / sigma)

    The sums over elements and the weights of pairs are those of the published code, whose CIFAR-100 script multiplies
    the loss by 0.001: give the loss that weight. That code sets a margin of ``-3 sigma`` where less than 0.1 % of a
    channel's responses are negative; here the expectation holds there too. It also has the teacher in training mode,
    here it is in evaluation mode.

    Batch normalization makes the value depend on the whole batch; with another ``norm`` the scope is ``"item"``.

    Shapes:
        maps ``(B, C, H, W)``; channels may differ. The teacher's map comes to the size of the student's, as in
        mdistiller: average-pooled where it is larger, repeated where it is smaller. So no position of the student is
        left out of the sum.

    References:
        Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, section 3;
        arXiv:1904.01866

    Args:
        student: paths of modules of the student, from shallow to deep, that give features before the activation: of
            the CIFAR ResNets and of torchvision's the input of a block's ReLU, ``layer1.2.relu:input``. (``bn2`` is the
            branch without its shortcut.) The published code takes the last block of each stage. See
            :class:`~kdengine.losses.hints.pairs.FeatureLoss`.
        teacher: paths of modules of the teacher, as many.
        margin: None to find the batch normalization before each of the teacher's features (the module itself, the last
            one inside it, the one before it in an ``nn.Sequential``, or the last one of the block that ends in the
            activation); the paths of these normalizations, one for each pair, for blocks in which one ReLU runs behind
            several, such as those of torchvision's resnet18 and resnet34 (``layer1.1.bn2``); or one number, at most 0,
            for all channels.
        norm: of the student's projection: ``batch`` as published, ``group`` (each item by itself) or ``none``.

    Example:
        >>> OFD(student="layer?.2.relu:input", teacher="layer?.8.relu:input").scope  # resnet20 under resnet56
        'batch'
    """

    scope: ClassVar[Literal["item", "batch"]] = "batch"

    def __init__(
        self, student: Paths, teacher: Paths, margin: float | Paths | None = None, norm: Norm = "batch"
    ) -> None:
        super().__init__(student, teacher)
        if not isinstance(margin, str | Sequence | None):
            check_number("ofd", "margin", margin)
            if margin > 0:
                raise ConfigurationError(f"ofd: margin must be at most 0, got {margin!r}")
        choose_norm(self, "ofd", norm)
        self.margin = (margin,) if isinstance(margin, str) else margin
        self.norm: Norm = norm

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """The student's projection, and the margins of the teacher's channels."""
        require_maps(*pair)
        warn_behind_activation("ofd", names, pair)
        channels, wanted = (feature.shape[1] for feature in pair)
        margins = self._margins(names[1], wanted, example).to(pair.teacher.dtype)
        return Projection(connector(self.norm, channels, wanted), margins.view(-1, 1, 1))

    def compare(self, student: Tensor, teacher: Tensor, learned: nn.Module) -> Tensor:
        """The partial squared distance of each item, ``(B,)``."""
        projection = cast("Projection", learned)
        projected: Tensor = projection.connector(student)
        target = torch.maximum(pooled(teacher, projected.shape[-2:]), projection.margins)
        counts = (projected > target) | (target > 0)
        return torch.where(counts, (projected - target).square(), 0.0).flatten(1).sum(dim=1)

    def combine(self, values: Sequence[Tensor]) -> Tensor:
        """All pairs as one: the last in full, each one before it with half the weight of the next."""
        return super().combine(halved(values))

    def _margins(self, path: str, channels: int, example: Batch) -> Tensor:
        if isinstance(self.margin, int | float):
            return torch.full((channels,), float(self.margin), dtype=torch.float64)
        model = example.teacher.module
        if model is None:
            raise ConfigurationError("there is no teacher's module to read a batch normalization from; give margin")
        if self.margin is not None:
            path = self._given(path, example)
        normalization = normalization_at(model, path)
        if normalization.weight.numel() != channels:
            raise ConfigurationError(
                f"the batch normalization found for {path!r} has {normalization.weight.numel()} channels, the feature "
                f"{channels}; name the right one with margin"
            )
        return expected_negative(normalization.bias.detach(), normalization.weight.detach().abs())

    def _given(self, path: str, example: Batch) -> str:
        """The normalization that the user names for a teacher's path."""
        paths = [theirs for _, theirs in self.names(example)]
        named = cast("Sequence[str]", self.margin)
        if len(named) != len(paths):
            raise ConfigurationError(f"margin names {len(named)} batch normalizations for {len(paths)} pairs")
        known = dict(cast("nn.Module", example.teacher.module).named_modules())
        found = named[paths.index(path)]
        if found not in known:
            raise ConfigurationError(f"margin: the teacher has no module {found!r}")
        return found


class Projection(nn.Module):
    """What is made for a pair: the student's projection, learned, and the margins, ``(C, 1, 1)``, fixed."""

    margins: Tensor

    def __init__(self, connector: nn.Module, margins: Tensor) -> None:
        super().__init__()
        self.connector = connector
        self.register_buffer("margins", margins)


def expected_negative(mean: Tensor, deviation: Tensor) -> Tensor:
    """``E[x | x < 0]`` of normal variables, never above 0; a constant is itself or 0.

    ``phi(a) / Phi(-a)`` is computed as ``sqrt(2 / pi) / erfcx(a / sqrt(2))``, which neither over- nor underflows.

    Args:
        mean: ``(C,)``.
        deviation: ``(C,)``, not negative.

    Example:
        >>> expected_negative(torch.tensor([0.0, -9.0, 9.0]), torch.ones(3))
        tensor([-0.7979, -9.0000, -0.1085])
    """
    mu, sigma = mean.double(), deviation.double()
    spread = torch.where(sigma > 0, sigma, 1.0)
    hazard = math.sqrt(2.0 / math.pi) / torch.special.erfcx(mu / spread / math.sqrt(2.0))
    expected = torch.where(sigma > 0, mu - sigma * hazard, mu)
    return expected.clamp(max=0.0).to(mean.dtype)
