"""Checks of what `kd_loss` is called with; every message says what was expected, what came and what to do."""

import difflib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from kdengine.ops.pair import Scalar

LOGITS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def can_look_at(tensor: Tensor) -> bool:
    """Whether values may be checked: reading them would stop an accelerator's queue or break a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def describe(tensor: Tensor) -> str:
    """Shape, dtype and device of a tensor, for messages."""
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}"


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse a word that is not among the known ones and name the nearest."""
    known = tuple(known)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}{hint}")


def check_fraction(name: str, value: float, *, closed: bool) -> float:
    """Refuse a number outside 0..1; `closed` admits the ends."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (0 <= value <= 1 if closed else 0 < value < 1):
        ends = "between 0 and 1" if closed else "strictly between 0 and 1 (at an end the loss is always zero)"
        raise ValueError(f"{name} must be {ends}, got {value}")
    return float(value)


def check_logits(student: Tensor, teacher: Tensor, dim: int) -> int:
    """Check both sides' types and devices, and return the class dim counted from the front."""
    for name, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor of logits, got {type(value).__name__}")
        if value.dtype not in LOGITS:
            raise TypeError(
                f"{name} must hold float16, bfloat16, float32 or float64 logits, got {describe(value)}; "
                f"pass the model's logits, not class ids, or convert with {name}.float()"
            )
    check_device("teacher", teacher, student)
    if not -student.ndim <= dim < student.ndim:
        raise ValueError(f"dim={dim} is outside student's dimensions; student has {describe(student)}")
    dim %= student.ndim
    if not rows_agree(student, teacher, dim):
        raise ValueError(
            f"student and teacher must have the same shape but for the class dim {dim}; student has "
            f"{describe(student)}, teacher has {describe(teacher)}"
        )
    if student.shape[dim] == 0 or teacher.shape[dim] == 0:
        raise ValueError(
            f"the class dim {dim} is empty: student has {describe(student)}, teacher has {describe(teacher)}"
        )
    return dim


def rows_agree(one: Tensor, other: Tensor, dim: int) -> bool:
    """Whether two tensors have the same shape but for the class dim."""
    if one.ndim != other.ndim:
        return False
    return all(a == b for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if i != dim)


def check_device(name: str, value: Tensor, student: Tensor) -> None:
    """Refuse a tensor on another device than the student's."""
    if value.device != student.device:
        raise ValueError(
            f"{name} is on {value.device} but student is on {student.device}; move it with {name}.to(student.device)"
        )


def check_per_row(name: str, value: Tensor, student: Tensor, dim: int) -> None:
    """Refuse a tensor that is not one value per row on the student's device."""
    check_device(name, value, student)
    rows = student.shape[:dim] + student.shape[dim + 1 :]
    if value.shape != rows:
        raise ValueError(
            f"{name} must have one value per row, shape {tuple(rows)} (student's shape without the class "
            f"dim {dim}), got {describe(value)}"
        )


def check_no_gradient(name: str, value: Tensor) -> None:
    """Refuse an argument that asks for a gradient it would not get."""
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires grad, but kd_loss gives it none; pass {name}.detach()")


def check_mask(mask: Tensor, student: Tensor, dim: int) -> Tensor:
    """Refuse a mask that is not one bool per row."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = describe(mask) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor (True: the row takes part), got {came}; use mask.bool()")
    check_per_row("mask", mask, student, dim)
    return mask


def check_pair(labels: Tensor | None, hard_weight: object) -> None:
    """Refuse labels without a weight, and a weight without labels."""
    if (labels is None) != (hard_weight is None):
        came, missing = ("labels", "hard_weight") if labels is not None else ("hard_weight", "labels")
        raise ValueError(
            f"{came} came without {missing}: the hard-label term needs both; pass {missing}, or drop {came}"
        )


def check_labels(labels: Tensor, student: Tensor, dim: int) -> None:
    """Refuse labels that are neither one class id per row nor one probability per logit."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    check_device("labels", labels, student)
    if not labels.is_floating_point():
        check_ids("labels", labels)
        check_per_row("labels", labels, student, dim)
        return
    check_no_gradient("labels", labels)
    if labels.shape != student.shape:
        raise ValueError(
            f"floating point labels are probabilities and must have student's shape {tuple(student.shape)}, "
            f"got {describe(labels)}; class ids must be integers"
        )


def check_indices(indices: Tensor, student: Tensor, teacher: Tensor) -> None:
    """Refuse indices that are not one class id per value of the teacher."""
    check_ids("teacher_indices", indices)
    check_device("teacher_indices", indices, student)
    if indices.shape != teacher.shape:
        raise ValueError(
            f"teacher_indices must have teacher's shape {tuple(teacher.shape)}: the class of each of "
            f"teacher's top-k values; got {describe(indices)}"
        )


def check_ids(name: str, ids: Tensor) -> None:
    """Refuse what does not hold integers."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(ids).__name__}")
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"{name} must hold integer class ids, got {describe(ids)}; use {name}.long()")


def check_numbers(name: str, value: object) -> None:
    """Refuse what is neither a number nor a tensor of real numbers without gradient."""
    if isinstance(value, Tensor):
        check_no_gradient(name, value)
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{name} must hold real numbers, got {describe(value)}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")


def as_tensor(name: str, value: float | Tensor, student: Tensor) -> Tensor:
    """Bring a number into a graph as a tensor: as a constant it would recompile at every value."""
    check_numbers(name, value)
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=torch.float64, device=student.device)


def scalar(name: str, value: float | Tensor, student: Tensor, dim: int, dtype: torch.dtype) -> Scalar:
    """Bring a number, a 0-dim tensor or one value per row into a form that broadcasts against the logits."""
    if torch.compiler.is_compiling():
        value = as_tensor(name, value, student)
    check_numbers(name, value)
    if not isinstance(value, Tensor):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
        return float(value)
    if value.ndim == 0:
        return value.to(student.device, dtype)
    check_per_row(name, value, student, dim)
    return value.to(dtype).unsqueeze(dim)


def positive_temperature(temperature: Scalar, active: Tensor | None) -> Scalar:
    """Refuse T <= 0 and NaN in rows that take part; where values cannot be read they become NaN instead."""
    if isinstance(temperature, float):
        if not temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {temperature}")
        return temperature
    wrong = ~(temperature > 0)
    if not can_look_at(temperature):
        return temperature.masked_fill(wrong, torch.nan)
    if active is not None:
        wrong = wrong & active
    if wrong.any():
        bad = temperature.expand_as(wrong)[wrong][0].item()
        raise ValueError(f"temperature must be greater than 0 in every row that takes part, got {bad}")
    return temperature
