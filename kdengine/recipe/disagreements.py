"""Test images on which student and teacher disagree, kept for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdengine import _files as files
from kdengine.api import Batch, Output
from kdengine.engine.batching import find_logits, place, to_batch
from kdengine.engine.layout import DISAGREEMENT_IMAGES, DISAGREEMENTS
from kdengine.engine.modes import evaluation_mode
from kdengine.engine.tensors import save_tensors


@dataclass(frozen=True)
class Disagreements:
    """Images whose predicted classes differ.

    Attributes:
        items: for each, its place in the data set, its label, and both models' class and confidence.
        images: for each, ``(C, H, W)`` uint8.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)


def write_disagreements(out: Path, found: Disagreements, classes: Sequence[str]) -> None:
    """Write images, and what both models say of them; nothing where there is none.

    Args:
        out: run directory.
        found: what :func:`find_disagreements` gave.
        classes: names of the classes.
    """
    if not found.items:
        for name in (DISAGREEMENTS, DISAGREEMENT_IMAGES):
            files.remove(out / name)
        return
    with files.replacing(out / DISAGREEMENT_IMAGES) as temporary:
        save_tensors(temporary, {"images": torch.stack(found.images)})
    files.write_json(out / DISAGREEMENTS, {"classes": list(classes), "items": found.items})


@torch.no_grad()
def find_disagreements(
    student: nn.Module,
    teacher: nn.Module,
    loader: Iterable[Any],
    *,
    align: Callable[[Batch], None] | None = None,
    count: int = 12,
) -> Disagreements:
    """The first test images whose predicted classes differ.

    None for inputs that are no images, nor for models whose classes do not correspond.

    Args:
        student: trained.
        teacher: its teacher; where it is sharded, every process must ask.
        loader: the test set.
        align: makes the teacher's classes those of the student.
        count: most images to keep.
    """
    found = Disagreements()
    device = next(teacher.parameters()).device
    student.to(device)
    with evaluation_mode(student, teacher):
        for data in loader:
            batch = place(to_batch(data), device)
            if not _is_image(batch.inputs) or batch.index is None or batch.labels is None:
                return Disagreements()
            _run(batch, student, teacher, align)
            if batch.student.logits.shape != batch.teacher.logits.shape:
                return Disagreements()
            ours, theirs = (output.logits.softmax(dim=-1).max(dim=-1) for output in (batch.student, batch.teacher))
            different = (ours.indices != theirs.indices).nonzero().flatten().tolist()
            for at in different[: count - len(found.items)]:
                found.items.append(
                    {
                        "index": int(batch.index[at]),
                        "label": int(batch.labels[at]),
                        "student": int(ours.indices[at]),
                        "teacher": int(theirs.indices[at]),
                        "student_confidence": float(ours.values[at]),
                        "teacher_confidence": float(theirs.values[at]),
                    }
                )
                found.images.append(to_uint8(batch.inputs[at]).cpu())
            if len(found.items) == count:
                break
    return found


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
