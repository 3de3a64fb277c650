"""From the arguments of `kd_loss` to its terms."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdengine.ops import arguments as check
from kdengine.ops.divergences import DIVERGENCES
from kdengine.ops.pair import Scalar
from kdengine.ops.terms import Hard, Rows, Soft
from kdengine.ops.topk import TOO_MUCH, tail_mass

REDUCTIONS = ("mean", "sum", "none")
TAILS = ("bin", "renormalize")


class Options(NamedTuple):
    """The arguments of `kd_loss` behind student and teacher, as they came but for `dim`."""

    temperature: float | Tensor
    soft_weight: float | Tensor
    hard_weight: float | Tensor | None
    mask: Tensor | None
    divergence: str
    beta: float
    label_smoothing: float
    ignore_index: int
    reduction: str
    dim: int
    tail: str


class Problem(NamedTuple):
    """What is to be computed, checked; a term that is None is zero.

    Attributes:
        soft: the divergence.
        hard: the cross-entropy.
        dim: the class dim, counted from the front.
        dtype: what everything is computed and the loss is returned in.
        reduce: whether the rows are summed.
    """

    soft: Soft | None
    hard: Hard | None
    dim: int
    dtype: torch.dtype
    reduce: bool


def pose(student: Tensor, teacher: Tensor, labels: Tensor | None, indices: Tensor | None, options: Options) -> Problem:
    """Check all arguments and gather them into a problem."""
    dim = check.check_logits(student, teacher, options.dim)
    check.check_choice("divergence", options.divergence, DIVERGENCES)
    check.check_choice("reduction", options.reduction, REDUCTIONS)
    check.check_choice("tail", options.tail, TAILS)
    options = options._replace(dim=dim)
    wide = torch.float64 in (student.dtype, teacher.dtype)
    dtype = torch.float64 if wide else torch.float32
    mask = _mask(options.mask, student, dim)
    return Problem(
        _soft(student, teacher, indices, mask, options, dtype),
        _hard(student, labels, mask, options, dtype),
        dim,
        dtype,
        options.reduction != "none",
    )


def _mask(mask: Tensor | None, student: Tensor, dim: int) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = check.describe(mask) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor (True: the row takes part), got {came}; use mask.bool()")
    check.check_per_row("mask", mask, student, dim)
    return mask.unsqueeze(dim)


def _rows(weight: Scalar, counted: Tensor | None, student: Tensor, options: Options, dtype: torch.dtype) -> Rows:
    """Rows that are counted but weigh nothing stay in a mean's divisor: the weight is their own."""
    active = counted
    if isinstance(weight, Tensor):
        active = (weight != 0) if counted is None else counted & (weight != 0)
    divisor: float | Tensor = 1.0
    if options.reduction == "mean" and counted is None:
        divisor = float(max(1, student.numel() // student.shape[options.dim]))
    elif options.reduction == "mean" and counted is not None:
        divisor = counted.sum().clamp(min=1).to(dtype)
    return Rows(weight, active, divisor)


def _soft(
    student: Tensor,
    teacher: Tensor,
    indices: Tensor | None,
    mask: Tensor | None,
    options: Options,
    dtype: torch.dtype,
) -> Soft | None:
    dim = options.dim
    beta = check.check_fraction("beta", options.beta, closed=False)
    temperature = check.scalar("temperature", options.temperature, student, dim, dtype)
    weight = check.scalar("soft_weight", options.soft_weight, student, dim, dtype)
    rows = _rows(weight, mask, student, options, dtype)
    temperature = check.positive_temperature(temperature, rows.active)
    if indices is not None:
        indices = _indices(indices, student, teacher, rows.active, options)
    if isinstance(weight, float) and weight == 0:
        return None
    return Soft(rows, temperature, options.divergence, beta, indices, options.tail)


def _indices(indices: Tensor, student: Tensor, teacher: Tensor, active: Tensor | None, options: Options) -> Tensor:
    _check_ids("teacher_indices", indices)
    check.check_device("teacher_indices", indices, student)
    if indices.shape != teacher.shape:
        raise ValueError(
            f"teacher_indices must have teacher's shape {tuple(teacher.shape)}: the class of each of "
            f"teacher's top-k values; got {check.describe(indices)}"
        )
    if check.can_look_at(indices):
        read = teacher != -torch.inf if active is None else (teacher != -torch.inf) & active
        _refuse_outside("teacher_indices", indices[read], student.shape[options.dim])
        if options.tail == "bin":
            _refuse_too_much(teacher.detach(), active, options.dim)
    return indices.long()


def _refuse_too_much(teacher: Tensor, active: Tensor | None, dim: int) -> None:
    wrong = tail_mass(teacher.double(), dim) < 1 - TOO_MUCH
    if (wrong if active is None else wrong & active).any():
        raise ValueError(
            "teacher's top-k values have probabilities that sum to more than 1: tail='bin' needs "
            "log-probabilities over all classes, such as teacher.log_softmax(-1).topk(k); raw logits need "
            "tail='renormalize'"
        )


def _hard(
    student: Tensor, labels: Tensor | None, mask: Tensor | None, options: Options, dtype: torch.dtype
) -> Hard | None:
    smoothing = check.check_fraction("label_smoothing", options.label_smoothing, closed=True)
    if (labels is None) != (options.hard_weight is None):
        came, missing = ("labels", "hard_weight") if labels is not None else ("hard_weight", "labels")
        raise ValueError(
            f"{came} came without {missing}: the hard-label term needs both; pass {missing}, or drop {came}"
        )
    if labels is None or options.hard_weight is None:
        return None
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    weight = check.scalar("hard_weight", options.hard_weight, student, options.dim, dtype)
    check.check_device("labels", labels, student)
    build = _probabilities if labels.is_floating_point() else _class_ids
    term = build(student, labels, weight, mask, options, dtype)._replace(smoothing=smoothing)
    return None if isinstance(weight, float) and weight == 0 else term


def _probabilities(
    student: Tensor, labels: Tensor, weight: Scalar, mask: Tensor | None, options: Options, dtype: torch.dtype
) -> Hard:
    check.check_no_gradient("labels", labels)
    if labels.shape != student.shape:
        raise ValueError(
            f"floating point labels are probabilities and must have student's shape {tuple(student.shape)}, "
            f"got {check.describe(labels)}; class ids must be integers"
        )
    labelled = (labels != 0).any(options.dim, keepdim=True)
    counted = labelled if mask is None else labelled & mask
    return Hard(_rows(weight, counted, student, options, dtype), labels.to(dtype), None, 0.0)


def _class_ids(
    student: Tensor, labels: Tensor, weight: Scalar, mask: Tensor | None, options: Options, dtype: torch.dtype
) -> Hard:
    _check_ids("labels", labels)
    check.check_per_row("labels", labels, student, options.dim)
    ids = labels.long().unsqueeze(options.dim)
    classes = student.shape[options.dim]
    counted: Tensor | None = ids != options.ignore_index
    if mask is not None and counted is not None:
        counted = counted & mask
    if not check.can_look_at(ids):
        rows = _rows(weight, counted, student, options, dtype)
        unknown = (ids < 0) | (ids >= classes)
        return Hard(rows, ids.masked_fill(unknown, 0), unknown, 0.0)
    if counted is not None and counted.all():
        counted = None
    rows = _rows(weight, counted, student, options, dtype)
    if rows.active is not None:
        ids = ids.where(rows.active, 0)
    _refuse_outside("labels", ids, classes, f", or be ignore_index={options.ignore_index}")
    return Hard(rows, ids, None, 0.0)


def _check_ids(name: str, ids: Tensor) -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(ids).__name__}")
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"{name} must hold integer class ids, got {check.describe(ids)}; use {name}.long()")


def _refuse_outside(name: str, ids: Tensor, classes: int, otherwise: str = "") -> None:
    if ids.numel() == 0:
        return
    low, high = (bound.item() for bound in ids.aminmax())
    if low < 0 or high >= classes:
        bad = low if low < 0 else high
        raise ValueError(f"{name} must lie in 0..{classes - 1} for {classes} classes{otherwise}; got {bad}")
