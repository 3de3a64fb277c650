"""Test images on which student and teacher disagree, kept for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdengine.api import Batch, Output
from kdengine.engine import files
from kdengine.engine.batching import find_logits, to_batch
from kdengine.engine.evaluate import evaluation_mode
from kdengine.engine.tensors import save_tensors

ITEMS = "disagreements.json"
IMAGES = "disagreements.safetensors"


def write_disagreements(
    out: Path,
    student: nn.Module,
    teacher: nn.Module,
    loader: Iterable[Any],
    classes: Sequence[str],
    *,
    align: Callable[[Batch], None] | None = None,
    count: int = 12,
) -> None:
    """Write the first ``count`` test images whose predicted classes differ.

    Nothing is written for inputs that are no images, nor for models whose classes do not correspond.

    Args:
        out: run directory.
        student: trained.
        teacher: its teacher.
        loader: the test set.
        classes: their names.
        align: makes the teacher's classes those of the student.
        count: most images to keep.
    """
    items, images = collect(student, teacher, loader, align, count)
    if not items:
        for name in (ITEMS, IMAGES):
            (out / name).unlink(missing_ok=True)
        return
    with files.replacing(out / IMAGES) as temporary:
        save_tensors(temporary, {"images": torch.stack(images)})
    files.write_json(out / ITEMS, {"classes": list(classes), "items": items})


@torch.no_grad()
def collect(
    student: nn.Module,
    teacher: nn.Module,
    loader: Iterable[Any],
    align: Callable[[Batch], None] | None,
    count: int,
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """What both models say of the images on which they differ, and the images as ``(C, H, W)`` uint8."""
    items: list[dict[str, Any]] = []
    images: list[Tensor] = []
    teacher = teacher.to(next(student.parameters()).device)
    with evaluation_mode(student, teacher):
        for data in loader:
            batch = to_batch(data)
            if not _is_image(batch.inputs) or batch.index is None or batch.labels is None:
                return [], []
            _run(batch, student, teacher, align)
            if batch.student.logits.shape != batch.teacher.logits.shape:
                return [], []
            ours, theirs = (output.logits.softmax(dim=-1).max(dim=-1) for output in (batch.student, batch.teacher))
            different = (ours.indices != theirs.indices).nonzero().flatten().tolist()
            for at in different[: count - len(items)]:
                items.append(
                    {
                        "index": int(batch.index[at]),
                        "label": int(batch.labels[at]),
                        "student": int(ours.indices[at]),
                        "teacher": int(theirs.indices[at]),
                        "student_confidence": float(ours.values[at]),
                        "teacher_confidence": float(theirs.values[at]),
                    }
                )
                images.append(to_uint8(batch.inputs[at]))
            if len(items) == count:
                break
    return items, images


def _run(batch: Batch, student: nn.Module, teacher: nn.Module, align: Callable[[Batch], None] | None) -> None:
    """Put both models' outputs on the batch."""
    for role, model in (("student", student), ("teacher", teacher)):
        output = model(batch.inputs)
        setattr(batch, role, Output(output, find_logits(output), module=model))
    if align is not None:
        align(batch)


def _is_image(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.ndim == 4 and inputs.shape[1] in (1, 3)


def to_uint8(image: Tensor) -> Tensor:
    """An image stretched from its own range to 0..255, whatever its normalisation.

    >>> to_uint8(torch.tensor([[[-1.0, 1.0]]])).tolist()
    [[[0, 255]]]
    """
    low, high = image.amin(), image.amax()
    return ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
