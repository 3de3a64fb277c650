"""The loss in pure PyTorch: the definition of the operator, and what runs where there is no compiled one."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from kdengine.ops.autograd import refuse_second_derivative, scaled
from kdengine.ops.divergences import Needs
from kdengine.ops.problem import Options, Problem, pose
from kdengine.ops.terms import Terms, Value, hard_value, soft_value


def kd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None, options: tuple[Any, ...], return_terms: bool
) -> Tensor | Terms:
    """Check the arguments and compute the loss; `options` are those of `Options`."""
    problem = pose(student, teacher, labels, Options(*options))
    if torch.is_grad_enabled():  # not "if an input requires grad": under torch.func that is not visible here
        terms: Terms = KDLoss.apply(student, teacher, problem)
    else:
        terms, _ = evaluate(student, teacher, problem, (False, False))
    return terms if return_terms else terms[0]


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
        refuse_second_derivative()
        gradients = ctx.saved_tensors
        factor = factors[0]
        if factor is None:
            return None, None, None
        return (*scaled(gradients, factor, ctx.dim), None)
