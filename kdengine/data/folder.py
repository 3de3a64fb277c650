"""A folder of images, one sub-folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdengine._paths import expanded
from kdengine.api import ConfigurationError
from kdengine.data.dataset import ClassificationData, Split, check_split, digest
from kdengine.data.transforms import to_tensor

LAYOUT = "train/<class>/*.jpg and test/<class>/*.jpg (or val/)"


class ImageFolder(ClassificationData):
    """Images below ``folder/<class>/``, decoded when asked for.

    The transform sees a PIL image in RGB; what is still one afterwards becomes ``(3, H, W)`` float32 from 0 to 1.

    Args:
        folder: the folder of one split.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torchvision.datasets import ImageFolder as Source
        except ImportError as error:
            raise ConfigurationError(
                "data set 'image_folder' needs torchvision: pip install 'kdengine[vision]'"
            ) from error
        try:
            self._source: Any = Source(str(folder))
        except FileNotFoundError as error:
            raise ConfigurationError(f"no images to read in {folder}: {error}; expected {LAYOUT}") from error
        super().__init__(self._source.classes, self._source.targets)
        self.folder = folder

    def __getitem__(self, position: int) -> tuple[Any, int]:
        value, label = super().__getitem__(position)
        return to_tensor(value), label

    def load(self, position: int) -> Any:
        """One image, PIL in RGB."""
        return self._source.loader(self._source.samples[position][0])

    def fingerprint(self) -> str:
        """A digest of each image's relative path, size and time of change; contents are not read."""
        files = [Path(path) for path, _ in self._source.samples]
        stats = [file.stat() for file in files]
        return digest(
            *(
                f"{file.relative_to(self.folder).as_posix()} {stat.st_size} {stat.st_mtime_ns}"
                for file, stat in zip(files, stats, strict=True)
            )
        )


def image_folder(split: Split, root: str | Path) -> ImageFolder:
    """Images in ``root/train/<class>/`` and ``root/test/<class>/`` (or ``root/val/<class>/``).

    Classes are the sub-folders in alphabetical order, the same in both splits. Images differ in size until a transform
    (``resize``, ``center_crop``, ``random_resized_crop``) makes them equal.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder that holds both splits.

    Returns:
        the data set.

    Raises:
        ConfigurationError: a folder is missing or empty, or the two splits have different classes.
    """
    check_split(split)
    base = expanded(root).absolute()
    train = _existing(base, "train")
    if split == "train":
        return ImageFolder(train)
    data, known = ImageFolder(_existing(base, "test", "val")), _class_folders(train)
    if data.classes != known:
        missing, extra = sorted(set(known) - set(data.classes)), sorted(set(data.classes) - set(known))
        raise ConfigurationError(
            f"{data.folder} and {train} must have the same classes, or their ids would differ; "
            f"missing in {data.folder.name}: {missing}, only in {data.folder.name}: {extra}"
        )
    return data


def _existing(base: Path, *names: str) -> Path:
    """The first of ``base``'s folders that exists."""
    found = next((base / name for name in names if (base / name).is_dir()), None)
    if found is None:
        there = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else None
        state = "which does not exist" if there is None else f"which has the folders {there[:8]}"
        raise ConfigurationError(f"no folder {' or '.join(names)} in {base}, {state}; expected {LAYOUT}")
    return found


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
