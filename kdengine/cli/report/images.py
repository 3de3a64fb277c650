"""Test images about which student and teacher disagree."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdengine._untrusted import MIB, check_regular, read_json
from kdengine.cli.report.damage import text
from kdengine.cli.report.formats import percent
from kdengine.cli.report.values import integer, number
from kdengine.engine.layout import DISAGREEMENT_IMAGES, DISAGREEMENTS

_MOST = 12
_LARGEST = 112
_SMALL = 64
_ITEMS_LIMIT = MIB


@dataclass(frozen=True)
class Opinion:
    """What one model says about an image."""

    said: str
    confidence: str
    right: bool | None


@dataclass(frozen=True)
class Sample:
    """An image and what is said about it.

    Attributes:
        source: the image as a data URI.
        pixelated: whether it is so small that its pixels are to be seen.
        label: the true class; empty where unknown.
    """

    source: str
    pixelated: bool
    label: str
    student: Opinion
    teacher: Opinion
    index: int | None


def read_samples(folder: Path) -> list[Sample]:
    """The disagreements that a run kept; none when it kept none, or they cannot be read."""
    try:
        table = read_json(folder / DISAGREEMENTS, _ITEMS_LIMIT)
        images = _load(folder / DISAGREEMENT_IMAGES)
    except (OSError, ValueError, KeyError):
        return []
    if not isinstance(table, Mapping) or not isinstance(table.get("items"), list):
        return []
    classes = table.get("classes")
    names = [text(str(name)) for name in classes] if isinstance(classes, list) else []
    pairs = zip(table["items"][:_MOST], images, strict=False)
    return [sample for item, image in pairs if (sample := _sample(item, image, names)) is not None]


def _load(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    check_regular(path)
    try:
        images = load_file(path)["images"]
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise ValueError(f"{path} is damaged: {error}") from error
    if images.dtype.name != "uint8" or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"{path} holds no images: expected uint8 (N, 1 or 3, H, W), got {images.shape}")
    return images


def _sample(item: Any, image_CHW: Any, names: list[str]) -> Sample | None:  # noqa: N803
    if not isinstance(item, Mapping):
        return None
    student, teacher = integer(item.get("student")), integer(item.get("teacher"))
    if student is None or teacher is None:
        return None
    label = integer(item.get("label"))
    if label is not None and label < 0:
        label = None
    return Sample(
        source=_encoded(image_CHW),
        pixelated=max(image_CHW.shape[1:]) <= _SMALL,
        label="" if label is None else _name(names, label),
        student=_opinion(student, item.get("student_confidence"), label, names),
        teacher=_opinion(teacher, item.get("teacher_confidence"), label, names),
        index=integer(item.get("index")),
    )


def _opinion(said: int, confidence: Any, label: int | None, names: list[str]) -> Opinion:
    sure = number(confidence)
    sure = sure if sure is not None and 0.0 <= sure <= 1.0 else None
    return Opinion(
        _name(names, said), "" if sure is None else percent(sure, 0), None if label is None else said == label
    )


def _name(names: list[str], position: int) -> str:
    return names[position] if 0 <= position < len(names) else str(position)


def _encoded(image_CHW: Any) -> str:  # noqa: N803
    from PIL import Image

    picture = Image.fromarray(image_CHW[0] if image_CHW.shape[0] == 1 else image_CHW.transpose(1, 2, 0))
    written = io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(written, "PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((_LARGEST, _LARGEST))
        picture.save(written, "JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
