"""Residual networks for CIFAR-sized images.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2: 6n + 2 layers in three stages. As in
RepDistiller (Tian et al., "Contrastive Representation Distillation", ICLR 2020), whose accuracies the distillation
literature compares with, a stage that changes width or size has a 1x1 convolution as its shortcut (He's option B,
where section 4.2 of the paper uses the parameter-free option A), and the ``x4`` variants have widths 64, 128, 256 after
a stem of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kdengine.api import ConfigurationError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    ``relu`` runs once, on the sum of branch and shortcut: ``relu:input`` is the block before its activation. (``bn2``
    gives the branch alone.)

    Args:
        width_in: channels of the input.
        width: channels of the output.
        stride: stride of the first convolution.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, width_in, H, W)`` to ``(B, width, H / stride, W / stride)``."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        # nothing is done in place: a hint may have captured any of these
        outputs: Tensor = self.relu(self.bn2(self.conv2(hidden)) + self.downsample(inputs))
        return outputs


class CifarResNet(nn.Module):
    """A residual network of three stages at full, half and quarter resolution.

    Submodules that hints can name: ``conv1``, ``bn1``, ``layer1``, ``layer2``, ``layer3``, ``fc``, and the n blocks of
    a stage, ``layer1.0`` to ``layer1.{n - 1}``. Losses that are published for features before the activation (OFD, AB,
    ReviewKD) name ``bn1``, and of a block ``layer1.0.relu:input``, the sum of its branch and its shortcut.

    An input may have any height and width from 4 on: the last stage is averaged over whatever size is left.

    Args:
        depth: layers with weights, 6n + 2.
        widths: channels of the stem and of the three stages.
        channels: channels of an input.
        classes: number of classes.

    Raises:
        ConfigurationError: no such network has that depth, or there are not four widths.

    Example:
        >>> sum(p.numel() for p in CifarResNet(8, (4, 4, 8, 16)).parameters())
        5214
    """

    def __init__(self, depth: int, widths: Sequence[int], channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        if len(widths) != 4 or min(widths) < 1:
            raise ConfigurationError(f"widths are those of the stem and of three stages, got {list(widths)}")
        if depth < 8 or (depth - 2) % 6:
            raise ConfigurationError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, ...), got depth {depth}")
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.fc = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """``inputs: (B, channels, H, W)`` to logits ``(B, classes)``."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.fc(hidden.mean(dim=(-2, -1)))
        return logits


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    later = [BasicBlock(width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(width_in, width, stride), *later)


Factory: TypeAlias = Callable[..., CifarResNet]


def _variant(name: str, depth: int, widths: Sequence[int] = (16, 16, 32, 64)) -> Factory:
    """The factory of one published network: depth and widths are part of its name."""

    def build(channels: int = 3, classes: int = 10) -> CifarResNet:
        return CifarResNet(depth, widths, channels, classes)

    last = (depth - 2) // 6 - 1
    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""CIFAR ResNet of {depth} layers: stem {widths[0]}, stages {", ".join(map(str, widths[1:]))}.

    He et al., CVPR 2016, section 4.2, with 1x1 convolutions as shortcuts, as in RepDistiller. Features to name:
    ``conv1``, ``bn1``, ``layer1``, ``layer2``, ``layer3``, ``fc``; before the activation ``bn1`` and, of the last block
    of a stage, ``layer1.{last}.relu:input``.

    Args:
        channels: channels of an input.
        classes: number of classes.
    """
    return build


resnet8 = _variant("resnet8", 8)
resnet14 = _variant("resnet14", 14)
resnet20 = _variant("resnet20", 20)
resnet32 = _variant("resnet32", 32)
resnet44 = _variant("resnet44", 44)
resnet56 = _variant("resnet56", 56)
resnet110 = _variant("resnet110", 110)
resnet8x4 = _variant("resnet8x4", 8, (32, 64, 128, 256))
resnet32x4 = _variant("resnet32x4", 32, (32, 64, 128, 256))
