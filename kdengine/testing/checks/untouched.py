"""What a loss leaves as it found it: tensors of the batch, and the models behind the outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdengine.api import Batch, Weight
from kdengine.testing.case import Case, remembered
from kdengine.testing.samples import apply, differentiable, outputs_of
from kdengine.testing.trial import Trial, promises


@promises("tensors", "nothing in the batch is written to; the teacher is in the graph only where that is declared")
def tensors(case: Case, trial: Trial) -> None:
    """Nothing is written to, and the teacher takes part in the graph only where that was declared."""
    loss = case.make()
    batch, leaves = differentiable(case.batch(), teacher=loss.needs.teacher_gradients)
    seen = [*(batch.teacher.tensors() if batch.has_teacher else []), *leaves, *_data_of(batch)]
    before = [tensor.detach().clone() for tensor in seen]
    weights: dict[str, Weight] = dict.fromkeys(loss.terms, 1.0)
    trial.tries(f"values, weighted sum and gradient, with {len(seen)} tensors compared before and after")
    with remembered(loss):
        if case.item_scope:
            loss.per_item(batch)
        total, _ = loss.weighted_sum(batch, weights)
        gradients = torch.autograd.grad(total, leaves, allow_unused=True) if leaves else ()
    for tensor, old in zip(seen, before, strict=True):
        worst = _difference(tensor.detach(), old)
        if not trial.measure(worst, 0.0):
            trial.fail(f"it changed a tensor of the batch in place, by {worst:.3g}; work on a copy")
    if not batch.has_teacher:
        return
    if not loss.needs.teacher_gradients:
        touched = any(tensor.requires_grad for tensor in batch.teacher.tensors())
        trial.require(not touched, "it made the teacher's output require a gradient, which needs does not declare")
    else:
        given = {id(leaf) for leaf, grad in zip(leaves, gradients, strict=True) if grad is not None}
        reached = any(id(tensor) in given for tensor in batch.teacher.tensors())
        trial.require(reached, "needs.teacher_gradients is declared, but no gradient reaches the teacher's output")


def _difference(one: Tensor, other: Tensor) -> float:
    if torch.equal(one, other):
        return 0.0
    return float((one.double() - other.double()).abs().max())


def _data_of(batch: Batch) -> list[Tensor]:
    """The tensors that come from the loader."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    apply(keep, [batch.inputs, batch.labels, batch.index, batch.mask, batch.weights])
    return found


@promises(
    "models", "teacher and student keep their training mode, weights and statistics, and what requires a gradient"
)
def models(case: Case, trial: Trial) -> None:
    """The models behind the outputs are as they were, module by module."""
    loss = case.make()
    batch, leaves = differentiable(case.batch(), teacher=loss.needs.teacher_gradients)
    named = {
        f"the {who}'s {name or 'model'}": module
        for who, output in zip(("student", "teacher"), outputs_of(batch), strict=False)
        for name, module in (() if output.module is None else output.module.named_modules())
    }
    trial.tries(f"values, weighted sum and gradient, with {len(named)} modules compared before and after")
    before = {what: _state(module) for what, module in named.items()}
    with remembered(loss):
        if case.item_scope:
            loss.per_item(batch)
        total, _ = loss.weighted_sum(batch, dict.fromkeys(loss.terms, 1.0))
        torch.autograd.grad(total, leaves, allow_unused=True)
    for what, module in named.items():
        _compare(trial, what, before[what], _state(module))


State = tuple[bool, list[tuple[str, bool, Tensor]]]
"""A module's training mode, and its own tensors by name with their ``requires_grad``."""


def _state(module: nn.Module) -> State:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return module.training, [(name, tensor.requires_grad, tensor.detach().clone()) for name, tensor in own]


def _compare(trial: Trial, what: str, before: State, after: State) -> None:
    modes = ["in evaluation mode", "in training mode"]
    (training, tensors), (trains_now, tensors_now) = before, after
    trial.require(
        training == trains_now,
        f"it put {what}, which was {modes[training]}, {modes[trains_now]}; leave the mode to the engine",
    )
    for (name, wanted, old), (_, wants_now, new) in zip(tensors, tensors_now, strict=True):
        trial.require(wanted == wants_now, f"it turned requires_grad of {name} in {what} to {wants_now}")
        worst = _difference(new, old)
        if not trial.measure(worst, 0.0):
            trial.fail(f"it changed {name} in {what}, by {worst:.3g}")
