"""Batch transforms that mix two samples into one.

Both follow one scheme: a batch is drawn to be mixed with probability ``p``; its partners are a random permutation of
itself, and the labels become class probabilities. Randomness is drawn from the given generator alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kdengine.api import Batch, BatchTransform, ConfigurationError
from kdengine.api.batch import describe

IGNORE_INDEX = -100


class Mixing(BatchTransform):
    """Base of mixup and cutmix.

    Labels come out as class probabilities ``(B, classes)`` float32 whether the batch was mixed or not; an unlabelled
    item or partner (-100, or a row of zeros) gives a row of zeros. ``index`` becomes None, since an item is no longer
    one sample of the data set. An item is never mixed with one that ``mask`` leaves out.

    Args:
        classes: number of classes.
        alpha: both parameters of the Beta distribution from which a batch's lambda is drawn.
        p: probability that a batch is mixed.
    """

    def __init__(self, classes: int, alpha: float, p: float) -> None:
        if not 0.0 < alpha < math.inf:
            raise ConfigurationError(f"expected alpha above 0, got {alpha}")
        if not 0.0 <= p <= 1.0:
            raise ConfigurationError(f"expected p between 0 and 1, got {p}")
        self.classes, self.alpha, self.p = classes, alpha, p

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The mixed batch; the given one is left as it is."""
        inputs = batch.inputs
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise ConfigurationError(
                f"{type(self).__name__.lower()} mixes inputs that are one floating-point tensor, "
                f"got {describe(inputs)}; leave the transform out, or bring a batch transform for these inputs"
            )
        labels = None if batch.labels is None else self.probabilities(batch.labels)
        weights = batch.weights
        if _uniform(generator) < self.p:
            partner = self._partners(batch, generator)
            drawn = beta(self.alpha, generator)
            inputs, share = self.mix(inputs, inputs[partner.to(inputs.device)], drawn, generator)
            shares, weights = blend_weights(weights, partner, share)
            labels = None if labels is None else _blend(labels, labels[partner.to(labels.device)], shares)
        return batch.replace(inputs=inputs, labels=labels, index=None, weights=weights)

    @abstractmethod
    def mix(self, inputs: Tensor, others: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, float]:
        """Mixed inputs, and the share of each that is its own.

        Args:
            inputs: the batch's inputs.
            others: each item's partner.
            share: lambda.
            generator: source of randomness.
        """

    def probabilities(self, labels: Tensor) -> Tensor:
        """Labels as probabilities ``(B, classes)``; an unlabelled item gives a row of zeros."""
        if not isinstance(labels, Tensor):
            raise ConfigurationError(
                f"{type(self).__name__.lower()} needs labels as one tensor, got {describe(labels)}"
            )
        if labels.is_floating_point() and labels.ndim == 2 and labels.shape[1] == self.classes:
            return labels.float()
        if labels.is_floating_point() or labels.ndim != 1:
            raise ConfigurationError(
                f"{type(self).__name__.lower()} needs labels that are class ids (B,) or probabilities "
                f"(B, {self.classes}), got {describe(labels)}"
            )
        labelled = (labels != IGNORE_INDEX).unsqueeze(-1)
        ids = torch.where(labels == IGNORE_INDEX, 0, labels.long())
        return F.one_hot(ids, self.classes).float() * labelled

    def _partners(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """A random permutation, in which an item stays alone whose partner does not count."""
        partner = torch.randperm(batch.size, generator=generator, device=generator.device)
        alive = batch.mask
        if batch.weights is not None:
            alive = batch.weights != 0 if alive is None else alive & (batch.weights != 0)
        if alive is None:
            return partner
        return torch.where(alive.to(partner.device)[partner], partner, torch.arange(batch.size, device=partner.device))


class MixUp(Mixing):
    """Mixup: ``x = lambda * x_i + (1 - lambda) * x_j``, ``y = lambda * y_i + (1 - lambda) * y_j``.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, equation 1, with one
    ``lambda ~ Beta(alpha, alpha)`` per optimizer step, as in the authors' code.

    Args:
        classes: number of classes.
        alpha: both parameters of the Beta distribution; small values mix little.
        p: probability that a batch is mixed.
    """

    def __init__(self, classes: int, alpha: float = 0.2, p: float = 1.0) -> None:
        super().__init__(classes, alpha, p)

    def mix(self, inputs: Tensor, others: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, float]:
        """The weighted mean of each item and its partner."""
        return torch.lerp(others, inputs, share), share


class CutMix(Mixing):
    """Cutmix: a rectangle of the partner replaces the item's, labels are mixed by the area that is left.

    Source: Yun et al., "CutMix", ICCV 2019, equations 1 and 2: the rectangle is ``W * sqrt(1 - lambda)`` wide and
    ``H * sqrt(1 - lambda)`` high around a uniformly drawn centre, ``lambda ~ Beta(alpha, alpha)``; what the image's
    edge cuts off counts as the item's own. One rectangle per optimizer step; inputs ``(B, ..., H, W)``.

    Args:
        classes: number of classes.
        alpha: both parameters of the Beta distribution; 1 draws lambda uniformly.
        p: probability that a batch is mixed.
    """

    def __init__(self, classes: int, alpha: float = 1.0, p: float = 1.0) -> None:
        super().__init__(classes, alpha, p)

    def mix(self, inputs: Tensor, others: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, float]:
        """Each item with a rectangle of its partner."""
        if inputs.ndim < 3:
            raise ConfigurationError(f"cutmix needs images (B, ..., H, W), got {describe(inputs)}")
        height, width = inputs.shape[-2:]
        side = (1.0 - share) ** 0.5
        top, bottom = _interval(height, side, generator)
        left, right = _interval(width, side, generator)
        mixed = inputs.clone()
        mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        return mixed, 1.0 - (bottom - top) * (right - left) / (height * width)


def beta(alpha: float, generator: torch.Generator) -> float:
    """One draw from Beta(alpha, alpha), as ``g / (g + h)`` of two Gamma(alpha) draws.

    ``Gamma(alpha) = Gamma(alpha + 1) * u ** (1 / alpha)`` in logarithms: for a small alpha both draws would otherwise
    underflow to 0 / 0.
    """
    shape = torch.full((2,), alpha + 1.0, dtype=torch.float64, device=generator.device)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = 1.0 - torch.rand(2, dtype=torch.float64, device=generator.device, generator=generator)  # (0, 1]
    log_g, log_h = gamma.log() + uniform.log() / alpha
    return float(torch.sigmoid(log_g - log_h))


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), device=generator.device, generator=generator))


def _interval(length: int, side: float, generator: torch.Generator) -> tuple[int, int]:
    """A stretch of ``side * length`` pixels around a uniformly drawn centre, clipped to the image."""
    centre, size = int(_uniform(generator) * length), int(side * length)
    return max(0, centre - size // 2), min(length, centre + (size + 1) // 2)


def blend_weights(weights: Tensor | None, partner: Tensor, share: float) -> tuple[Tensor | float, Tensor | None]:
    """Each item's own share of its mixed label, and the weight of the mixed item.

    Args:
        weights: of the items, ``(B,)`` or None.
        partner: with whom each is mixed, ``(B,)``.
        share: its own share of the mixed input.

    Returns:
        ``lambda w_i / w`` as ``(B, 1)`` and ``w = lambda w_i + (1 - lambda) w_j``; the share itself without weights.
    """
    if weights is None:
        return share, None
    mixed = torch.where(weights > 0, torch.lerp(weights[partner.to(weights.device)], weights, share), 0.0)
    own = torch.where(mixed > 0, share * weights / mixed, share)
    return own.float().unsqueeze(-1), mixed


def _blend(labels: Tensor, others: Tensor, share: Tensor | float) -> Tensor:
    """Mixed probabilities; zeros where either side is unlabelled."""
    labelled = (labels != 0).any(dim=-1) & (others != 0).any(dim=-1)
    return torch.lerp(others, labels, share) * labelled.unsqueeze(-1)
