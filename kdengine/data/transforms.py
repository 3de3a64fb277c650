"""Transforms of one input.

Conversion and normalisation are plain torch, so that data in memory needs no torchvision; everything else is
torchvision's, with arguments of simple types that a recipe can write. Randomness comes from torch's default generator,
which the loader seeds per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdengine.api import ConfigurationError
from kdengine.data.dataset import Transform


def to_tensor(image: Any) -> Tensor:
    """A PIL image as ``(C, H, W)`` float32 from 0 to 1; a tensor as it is.

    Args:
        image: a PIL image of 8 bits per channel (others are converted to RGB), or a tensor.
    """
    if isinstance(image, Tensor):
        return image
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    pixels = torch.from_numpy(np.array(image))  # (H, W) or (H, W, C)
    return pixels.reshape(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous().float().div(255.0)


class ToTensor:
    """A PIL image becomes ``(C, H, W)`` float32 from 0 to 1; a tensor stays as it is."""

    def __call__(self, image: Any) -> Tensor:
        """The image as a tensor."""
        return to_tensor(image)

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize:
    """``(image - mean) / std`` per channel; a PIL image becomes a tensor first.

    Args:
        mean: mean of each channel (one number serves all).
        std: standard deviation of each channel (one number serves all).

    Example:
        >>> Normalize(mean=[0.5], std=[0.25])(torch.ones(1, 1, 1))
        tensor([[[2.]]])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ConfigurationError(
                f"normalize expects a mean and a positive std per channel; got mean={list(mean)}, std={list(std)}"
            )
        self.mean, self.std = list(mean), list(std)
        self._mean, self._std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))

    def __call__(self, image: Any) -> Tensor:
        """The normalised image, ``(C, H, W)``, or images, ``(..., C, H, W)``."""
        pixels = to_tensor(image)
        if len(self.mean) not in (1, pixels.shape[-3]):
            raise ConfigurationError(f"normalize has {len(self.mean)} channels, but got an image {tuple(pixels.shape)}")
        return (pixels - self._mean.to(pixels)) / self._std.to(pixels)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


def random_crop(
    size: int | Sequence[int],
    padding: int = 0,
    mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant",
) -> Transform:
    """A crop at a random place.

    Args:
        size: height and width of the crop, or one number for both.
        padding: pixels added on every side beforehand.
        mode: what the added pixels are: zeros, the edge, or a mirror image without or with the edge.
    """
    return _v2("RandomCrop", size, padding=padding or None, padding_mode=mode)


def random_resized_crop(
    size: int | Sequence[int], scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (0.75, 4 / 3)
) -> Transform:
    """A crop of random area and aspect, resized (Szegedy et al., "Going Deeper with Convolutions", section 6).

    Args:
        size: height and width of the result, or one number for both.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest ratio of width to height.
    """
    return _v2("RandomResizedCrop", size, scale=tuple(scale), ratio=tuple(ratio))


def random_horizontal_flip(p: float = 0.5) -> Transform:
    """Left and right change places at random.

    Args:
        p: probability of a flip.
    """
    return _v2("RandomHorizontalFlip", p)


def random_rotation(degrees: float) -> Transform:
    """A rotation by a random angle; corners become 0.

    Args:
        degrees: largest angle to either side.
    """
    return _v2("RandomRotation", degrees)


def random_erasing(p: float = 0.5, scale: tuple[float, float] = (0.02, 0.33), value: float = 0.0) -> Transform:
    """A random rectangle is overwritten (Zhong et al., "Random Erasing Data Augmentation", AAAI 2020).

    Works on tensors: a PIL image needs ``to_tensor`` or ``normalize`` before.

    Args:
        p: probability of erasing.
        scale: smallest and largest share of the image's area.
        value: what is written.
    """
    return _v2("RandomErasing", p, scale=tuple(scale), value=value)


def resize(size: int | Sequence[int]) -> Transform:
    """The image at another size, bilinear with antialiasing.

    Args:
        size: height and width; one number is the shorter side, and the aspect is kept.
    """
    return _v2("Resize", size)


def center_crop(size: int | Sequence[int]) -> Transform:
    """The middle of the image.

    Args:
        size: height and width of the crop, or one number for both.
    """
    return _v2("CenterCrop", size)


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Transform:
    """Brightness, contrast, saturation and hue change at random.

    Args:
        brightness: largest relative change; the factor is drawn from 1 - x to 1 + x.
        contrast: largest relative change.
        saturation: largest relative change.
        hue: largest shift, as a share of the colour circle (0 to 0.5).
    """
    return _v2("ColorJitter", brightness, contrast, saturation, hue)


def auto_augment(policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet") -> Transform:
    """A learned augmentation policy (Cubuk et al., "AutoAugment", CVPR 2019).

    Args:
        policy: data set on which the policy was learned.
    """
    v2 = _import_v2("auto_augment")
    transform: Transform = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    return transform


def _v2(name: str, *args: Any, **kwargs: Any) -> Transform:
    """A transform of ``torchvision.transforms.v2``."""
    v2 = _import_v2(name)
    try:
        transform: Transform = getattr(v2, name)(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"torchvision refuses the arguments of {name}: {error}") from error
    return transform


def _import_v2(name: str) -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise ConfigurationError(f"transform {name} needs torchvision: pip install 'kdengine[vision]'") from error
    return v2
