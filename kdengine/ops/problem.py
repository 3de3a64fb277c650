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
    """The arguments of `kd_loss` behind the labels, as they came but for `dim`."""

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
    teacher_indices: Tensor | None
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


def pose(student: Tensor, teacher: Tensor, labels: Tensor | None, options: Options) -> Problem:
    """Check all arguments and gather them into a problem."""
    dim = check.check_logits(student, teacher, options.dim)
    check_words(options)
    options = options._replace(dim=dim)
    wide = torch.float64 in (student.dtype, teacher.dtype)
    dtype = torch.float64 if wide else torch.float32
    mask = None if options.mask is None else check.check_mask(options.mask, student, dim).unsqueeze(dim)
    return Problem(
        _soft(student, teacher, mask, options, dtype),
        _hard(student, labels, mask, options, dtype),
        dim,
        dtype,
        options.reduction != "none",
    )


def check_words(options: Options) -> None:
    """Refuse words that are not among the known ones."""
    check.check_choice("divergence", options.divergence, DIVERGENCES)
    check.check_choice("reduction", options.reduction, REDUCTIONS)
    check.check_choice("tail", options.tail, TAILS)


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
    indices = options.teacher_indices
    if indices is not None:
        indices = _indices(indices, student, teacher, rows.active, options)
    if isinstance(weight, float) and weight == 0:
        return None
    return Soft(rows, temperature, options.divergence, beta, indices, options.tail)


def _indices(indices: Tensor, student: Tensor, teacher: Tensor, active: Tensor | None, options: Options) -> Tensor:
    check.check_indices(indices, student, teacher)
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
    check.check_pair(labels, options.hard_weight)
    if labels is None or options.hard_weight is None:
        return None
    check.check_labels(labels, student, options.dim)
    weight = check.scalar("hard_weight", options.hard_weight, student, options.dim, dtype)
    build = _probabilities if labels.is_floating_point() else _class_ids
    term = build(student, labels, weight, mask, options, dtype)._replace(smoothing=smoothing)
    return None if isinstance(weight, float) and weight == 0 else term


def _probabilities(
    student: Tensor, labels: Tensor, weight: Scalar, mask: Tensor | None, options: Options, dtype: torch.dtype
) -> Hard:
    labelled = (labels != 0).any(options.dim, keepdim=True)
    counted = labelled if mask is None else labelled & mask
    return Hard(_rows(weight, counted, student, options, dtype), labels.to(dtype), None, 0.0)


def _class_ids(
    student: Tensor, labels: Tensor, weight: Scalar, mask: Tensor | None, options: Options, dtype: torch.dtype
) -> Hard:
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


def _refuse_outside(name: str, ids: Tensor, classes: int, otherwise: str = "") -> None:
    if ids.numel() == 0:
        return
    low, high = (bound.item() for bound in ids.aminmax())
    if low < 0 or high >= classes:
        bad = low if low < 0 else high
        raise ValueError(f"{name} must lie in 0..{classes - 1} for {classes} classes{otherwise}; got {bad}")
