"""Backward of both implementations: it scales gradients that the forward pass computed ahead."""

from collections.abc import Callable

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, Tensor | None]
"""Those of student and teacher."""

Scale = Callable[[Tensor, Tensor, int], object]
"""Multiplies a gradient in place by a factor, one or one per row, given the class dim."""

_graph_is_kept = torch._C._autograd._get_current_graph_task_keep_graph


def refuse_second_derivative() -> None:
    """Raise in a backward that is itself to be differentiated."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "kd_loss has no second derivative: its backward was called with create_graph=True; "
            "call backward or grad without create_graph, or leave kd_loss out of the part of the "
            "objective that is differentiated twice"
        )


def _aligned(gradient: Tensor, factor: Tensor, dim: int) -> Tensor:
    if factor.ndim:
        return factor.unsqueeze(dim)
    if factor.dtype == gradient.dtype:
        return factor
    # Not 0-dim, and so not cast to the gradient's dtype first: float16 would turn a loss scale of 65536 into inf.
    return factor.reshape([1] * gradient.ndim)


def _multiply(gradient: Tensor, factor: Tensor, dim: int) -> None:
    gradient.mul_(_aligned(gradient, factor, dim))


def products(gradients: Gradients, factor: Tensor, dim: int) -> Gradients:
    """Multiply kept gradients by the factor that arrives, one or one per row, into new tensors."""
    one, other = (None if g is None else (g * _aligned(g, factor, dim)).to(g.dtype) for g in gradients)
    return one, other


def scaled(gradients: Gradients, factor: Tensor, dim: int, in_place: Scale = _multiply) -> Gradients:
    """Multiply kept gradients by the factor that arrives, in place where nobody needs them as they were."""
    if torch.compiler.is_compiling() or _graph_is_kept():
        return products(gradients, factor, dim)
    if factor.is_cpu and factor.ndim == 0 and type(factor) is Tensor and factor.item() == 1:
        return gradients
    for gradient in gradients:
        if gradient is not None:
            in_place(gradient, factor, dim)
    return gradients
