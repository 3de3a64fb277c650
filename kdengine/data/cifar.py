"""CIFAR-10 and CIFAR-100, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdengine._paths import expanded
from kdengine.api import ConfigurationError
from kdengine.data.dataset import ClassificationData, Split, check_split, digest


class Cifar(ClassificationData):
    """A CIFAR split in memory, kept as bytes (150 MB for the training set).

    Args:
        source: torchvision's data set.
        files: names and MD5 sums of its files, which torchvision has checked.
    """

    def __init__(self, source: Any, files: list[Any]) -> None:
        super().__init__(source.classes, source.targets)
        self._pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32) uint8
        self._files = files

    def load(self, position: int) -> Tensor:
        """One image, ``(3, 32, 32)`` float32 from 0 to 1."""
        return self._pixels[position].float().div(255.0)

    def fingerprint(self) -> str:
        """A digest of the published MD5 sums, against which the files were checked."""
        return digest(*(str(item) for file in self._files for item in file))


def cifar10(split: Split, root: str | Path = "data", download: bool = True) -> Cifar:
    """CIFAR-10: 50,000 images to train on and 10,000 to test on, ``(3, 32, 32)`` float32 from 0 to 1, ten classes.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder that holds ``cifar-10-batches-py``, or will.
        download: fetch the 170 MB archive when it is not there.

    Returns:
        the data set.

    Raises:
        ConfigurationError: the data is not there and cannot be fetched, or torchvision is missing.
    """
    return _load("CIFAR10", split, root, download)


def cifar100(split: Split, root: str | Path = "data", download: bool = True) -> Cifar:
    """CIFAR-100: 50,000 images to train on and 10,000 to test on, ``(3, 32, 32)`` float32 from 0 to 1, 100 classes.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The classes are the fine ones.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder that holds ``cifar-100-python``, or will.
        download: fetch the 170 MB archive when it is not there.

    Returns:
        the data set.

    Raises:
        ConfigurationError: the data is not there and cannot be fetched, or torchvision is missing.
    """
    return _load("CIFAR100", split, root, download)


def _load(name: str, split: Split, root: str | Path, download: bool) -> Cifar:
    check_split(split)
    root = expanded(root)
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ConfigurationError(
            f"data set {name.lower()!r} needs torchvision: pip install 'kdengine[vision]'"
        ) from error
    kind = getattr(datasets, name)
    try:
        source = kind(root=root, train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        folder = root.absolute()
        remedy = (
            f"the download failed: without a network, fetch {kind.url} elsewhere, put {kind.filename} into {folder} "
            "and run again"
            if download
            else f"set download = true, or put {kind.filename} from {kind.url} into {folder} and set download = true "
            "once, which unpacks it without a network"
        )
        raise ConfigurationError(f"{name} was not found whole under {folder} ({error}); {remedy}") from error
    return Cifar(source, kind.train_list if split == "train" else kind.test_list)
