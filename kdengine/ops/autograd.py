"""One forward pass that computes value and gradients; backward only scales them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kdengine.ops.divergences import Needs
from kdengine.ops.problem import Problem
from kdengine.ops.terms import Value, hard_value, soft_value

Terms = tuple[Tensor, Tensor, Tensor]
"""The loss, and the soft and the hard term that add up to it."""


def evaluate(student: Tensor, teacher: Tensor, problem: Problem, needs: Needs) -> tuple[Terms, Value]:
    """Compute the terms, reduced, and the gradients in their inputs' dtypes."""
    s, t = student.to(problem.dtype), teacher.to(problem.dtype)
    dim = problem.dim
    soft = hard = None
    if problem.soft is not None:
        soft = soft_value(s, t, problem.soft, dim, needs)
    if problem.hard is not None:
        hard = hard_value(s, problem.hard, dim, needs[0])
    parts = _reduced(soft, s, problem), _reduced(hard, s, problem)
    terms = parts[0] + parts[1], *parts
    to_student = _sum(soft and soft.student, hard and hard.student)
    to_teacher = None if soft is None else soft.teacher
    return terms, Value(
        terms[0],
        _as_gradient(to_student, student) if needs[0] else None,
        _as_gradient(to_teacher, teacher) if needs[1] else None,
    )


def _reduced(term: Value | None, student: Tensor, problem: Problem) -> Tensor:
    if term is None:
        return student.new_zeros(()) if problem.reduce else torch.zeros_like(student.select(problem.dim, 0))
    return term.rows.sum() if problem.reduce else term.rows.squeeze(problem.dim)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _as_gradient(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.to(like.dtype)


class KDLoss(Function):
    """The loss with its gradient computed ahead: it keeps one gradient per input that needs one, no logits."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, problem: Problem) -> Terms:
        """Compute the terms, and keep the gradients for backward."""
        terms, value = evaluate(student, teacher, problem, ctx.needs_input_grad[:2])
        ctx.dim = problem.dim
        ctx.save_for_backward(value.student, value.teacher)
        ctx.mark_non_differentiable(*terms[1:])
        ctx.set_materialize_grads(False)
        return terms

    @staticmethod
    def backward(ctx: Any, *factors: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        """Scale the gradients by the factor that arrives, without reading it on the host."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "kd_loss has no second derivative: its backward was called with create_graph=True; "
                "call backward or grad without create_graph, or leave kd_loss out of the part of the "
                "objective that is differentiated twice"
            )
        to_student, to_teacher = ctx.saved_tensors
        factor = factors[0]
        if factor is None:
            return None, None, None
        return _scaled(to_student, factor, ctx.dim), _scaled(to_teacher, factor, ctx.dim), None


def _scaled(gradient: Tensor | None, factor: Tensor, dim: int) -> Tensor | None:
    if gradient is None:
        return None
    if factor.ndim == 0 and factor.dtype == gradient.dtype:
        return gradient * factor
    # Not 0-dim, and so not cast to the gradient's dtype first: float16 would turn a loss scale of 65536 into inf.
    factor = factor.reshape([1] * gradient.ndim) if factor.ndim == 0 else factor.unsqueeze(dim)
    return (gradient * factor).to(gradient.dtype)
