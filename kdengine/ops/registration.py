# ruff: noqa: ARG001 - PyTorch calls these with every argument of the schema
"""What PyTorch must know of the compiled operator besides its kernels: shapes without data, and its derivative."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdengine.ops import arguments as check
from kdengine.ops.autograd import products, refuse_second_derivative

NAME = "kdengine::kd_loss"
NO_REDUCTION = 0

operator: Callable[..., Any] | None = None
"""`torch.ops.kdengine.kd_loss.default`, once `ensure` was called."""


def ensure() -> bool:
    """Register the fake kernel and the derivative, once, after the library is loaded."""
    global operator
    if operator is None:
        torch.library.register_fake(NAME, _fake)
        torch.library.register_autograd(NAME, _backward, setup_context=_setup_context)
        operator = torch.ops.kdengine.kd_loss.default
    return True


# It runs while a graph is traced, and is no part of it: what `torch.compiler.assume_constant_result` does, without
# importing the compiler for it.
vars(ensure)["_dynamo_marked_constant"] = True


def _fake(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    temperature: float = 1.0,
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
    temperatures: Tensor | None = None,
    soft_weights: Tensor | None = None,
    hard_weights: Tensor | None = None,
    mask: Tensor | None = None,
    teacher_indices: Tensor | None = None,
    dim: int = -1,
    divergence: int = 0,
    beta: float = 0.5,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: int = 2,
    tail: int = 0,
    terms: bool = False,
    student_gradient: bool = True,
    teacher_gradient: bool = False,
    check: bool = True,
) -> tuple[Tensor | None, ...]:
    """Shapes and dtypes of the outputs, and the refusals that need no values."""
    dim = _check_shapes(student, teacher, dim, labels, mask, teacher_indices)
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    shape = student.shape[:dim] + student.shape[dim + 1 :] if reduction == NO_REDUCTION else ()
    loss, soft, hard = (student.new_empty(shape, dtype=dtype) if each else None for each in (True, terms, terms))
    to_student = torch.empty_like(student) if student_gradient else None
    to_teacher = torch.empty_like(teacher) if teacher_gradient else None
    return loss, soft, hard, to_student, to_teacher


def _check_shapes(
    student: Tensor,
    teacher: Tensor,
    dim: int,
    labels: Tensor | None,
    mask: Tensor | None,
    indices: Tensor | None,
) -> int:
    dim = check.check_logits(student, teacher, dim)
    if mask is not None:
        check.check_mask(mask, student, dim)
    if labels is not None:
        check.check_labels(labels, student, dim)
    if indices is not None:
        check.check_indices(indices, student, teacher)
    return dim


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    gradients = output[3:]
    for name, needed, gradient in zip(("student", "teacher"), ctx.needs_input_grad, gradients, strict=False):
        if needed and gradient is None:
            raise RuntimeError(f"{NAME}: {name} requires grad: call it with {name}_gradient=True, or detach {name}")
    ctx.save_for_backward(*gradients)
    ctx.dim = inputs[11]
    ctx.arguments = len(inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, factor: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_second_derivative()
    gradients = (None, None) if factor is None else products(ctx.saved_tensors, factor, ctx.dim)
    return (*gradients, *[None] * (ctx.arguments - 2))
