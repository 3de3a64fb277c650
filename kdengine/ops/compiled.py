"""The compiled operator `kdengine::kd_loss`: how `kd_loss` calls it, eagerly and while a graph is traced."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from kdengine.ops import arguments as check
from kdengine.ops import backend, registration
from kdengine.ops.autograd import refuse_second_derivative, scaled
from kdengine.ops.problem import Options as Named
from kdengine.ops.problem import check_words, pose
from kdengine.ops.terms import Terms

DIVERGENCES = {"forward_kl": 0, "reverse_kl": 1, "jsd": 2}
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
TAILS = {"bin": 0, "renormalize": 1}
USUAL = [None, "forward_kl", 0.5, 0.0, -100, "mean", -1, None, "bin"]
"""The defaults of the options behind the weights."""


Options = tuple[Any, ...]
"""Those of `kdengine.ops.problem.Options`, in its order; a plain tuple costs nothing."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The operator's arguments behind student and teacher: those that nearly every call has, and the rest by name.

The dispatcher takes about half a microsecond for an argument, and next to nothing for a default.
"""


def takes(student: Tensor) -> bool:
    """Whether the compiled operator computes the loss of this tensor."""
    if type(student) is not Tensor and type(student) is not Parameter:
        return False  # a subclass decides for itself what each elementary operation means
    if student.is_cpu:
        return backend.compiled()
    return student.is_cuda and backend.compiled_cuda()


# Few calls of Python functions: each costs about a microsecond here, as its code is not in the cache.
def kd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None, options: Options, return_terms: bool
) -> Tensor | Terms:
    """Run the operator; values and shapes are left to it, and what it refuses is explained by the reference."""
    if torch.compiler.is_compiling():
        return _traced(student, teacher, labels, Named(*options), return_terms)
    try:
        temperature, soft_weight, hard_weight, *others = options
        if (labels is None) != (hard_weight is None) or (labels is not None and labels.requires_grad):
            raise ValueError("labels and hard_weight must come together, and labels without requires_grad")
        rest = {} if others == USUAL else _unusual(*others)
        if return_terms:
            rest["terms"] = True
        if type(temperature) is not float:
            temperature = _number("temperatures", temperature, rest)
        if type(soft_weight) is not float:
            soft_weight = _number("soft_weights", soft_weight, rest)
        if hard_weight is None:
            hard_weight = 0.0
        elif type(hard_weight) is not float:
            hard_weight = _number("hard_weights", hard_weight, rest)
        call = (labels, temperature, soft_weight, hard_weight), rest
        if torch.is_grad_enabled():  # not "if an input requires grad": under torch.func that is not visible here
            terms: list[Tensor] = []
            loss = KDLoss.apply(student, teacher, call, terms)
            return (loss, *terms) if return_terms else loss
        return _value(student, teacher, call)
    except Exception:
        pose(student, teacher, labels, Named(*options))
        raise


def _number(name: str, value: object, rest: dict[str, Any]) -> float:
    check.check_numbers(name, value)
    if not isinstance(value, Tensor):
        return float(value)  # type: ignore[arg-type]
    rest[name] = value
    return 1.0


def _unusual(
    mask: Tensor | None,
    divergence: str,
    beta: float,
    label_smoothing: float,
    ignore_index: int,
    reduction: str,
    dim: int,
    teacher_indices: Tensor | None,
    tail: str,
) -> dict[str, Any]:
    """Those of the other options that are not at their defaults, as the operator takes them."""
    found: dict[str, Any] = {}
    if mask is not None:
        found["mask"] = mask
    if divergence != "forward_kl":
        found["divergence"] = DIVERGENCES[divergence]
    if beta != 0.5:
        found["beta"] = beta
    if label_smoothing != 0:
        found["label_smoothing"] = label_smoothing
    if ignore_index != -100:
        found["ignore_index"] = ignore_index
    if reduction != "mean":
        found["reduction"] = REDUCTIONS[reduction]
    if dim != -1:
        found["dim"] = dim
    if teacher_indices is not None:
        found["teacher_indices"] = teacher_indices
    if tail != "bin":
        found["tail"] = TAILS[tail]
    return found


STUDENT_ONLY = (True, False, False)

# Past the registration, which does in Python what is not needed in eager mode.
_below_autograd = torch._C._AutoDispatchBelowAutograd


def _registered() -> Callable[..., Any]:
    registration.ensure()
    assert registration.operator is not None
    return registration.operator


def _value(student: Tensor, teacher: Tensor, call: Call) -> Tensor | Terms:
    usual, rest = call
    with _below_autograd():
        loss, soft, hard, *_ = (registration.operator or _registered())(
            student, teacher, *usual, student_gradient=False, **rest
        )
    return loss if soft is None else (loss, soft, hard)


class KDLoss(torch.autograd.Function):
    """The operator in eager mode: cheaper by half than the autograd registration that tracing uses."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, call: Call, terms: list[Tensor]) -> Tensor:
        """Compute the value, and keep the gradients for backward.

        Terms that were asked for go to a list: as further outputs they would cost half as much as the loss itself.
        """
        usual, rest = call
        needs = ctx.needs_input_grad
        if needs != STUDENT_ONLY:
            rest = {**rest, "student_gradient": needs[0], "teacher_gradient": needs[1]}
        operator = registration.operator or _registered()
        with _below_autograd():
            loss, soft, hard, to_student, to_teacher = operator(student, teacher, *usual, **rest)
        ctx.save_for_backward(to_student, to_teacher)
        ctx.dim = rest.get("dim", -1)
        if soft is not None:
            terms += soft, hard
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients by the factor that arrives."""
        refuse_second_derivative()
        gradients = ctx.saved_tensors
        if factor.is_cuda:
            return (*scaled(gradients, factor, ctx.dim, torch.ops.kdengine.scale), None, None)
        return (*scaled(gradients, factor, ctx.dim), None, None)


def _traced(
    student: Tensor, teacher: Tensor, labels: Tensor | None, options: Named, return_terms: bool
) -> Tensor | Terms:
    """Call the operator with its numbers as tensors: a constant in the graph would recompile at every value."""
    registration.ensure()
    check_words(options)
    check.check_pair(labels, options.hard_weight)
    needs = torch.is_grad_enabled()
    loss, soft, hard, *_ = torch.ops.kdengine.kd_loss(
        student,
        teacher,
        labels,
        temperatures=check.as_tensor("temperature", options.temperature, student),
        soft_weights=check.as_tensor("soft_weight", options.soft_weight, student),
        hard_weights=None
        if options.hard_weight is None
        else check.as_tensor("hard_weight", options.hard_weight, student),
        mask=options.mask,
        teacher_indices=options.teacher_indices,
        dim=options.dim,
        divergence=DIVERGENCES[options.divergence],
        beta=options.beta,
        label_smoothing=options.label_smoothing,
        ignore_index=options.ignore_index,
        reduction=REDUCTIONS[options.reduction],
        tail=TAILS[options.tail],
        terms=return_terms,
        student_gradient=needs and student.requires_grad,
        teacher_gradient=needs and teacher.requires_grad,
        check=False,
    )
    return (loss, soft, hard) if return_terms else loss
