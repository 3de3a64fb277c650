"""The loss under test, and what the engine would make of it on a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kdengine.api import Batch, Loss
from kdengine.engine.objective import Objective
from kdengine.host import Host
from kdengine.recipe.signature import Argument
from kdengine.recipe.signature import arguments as signature
from kdengine.testing.report import fail
from kdengine.testing.samples import Shapes, attach_models, cast, differentiable, random_batch, rows, without_outputs

Sample: TypeAlias = Callable[[int, torch.Generator], Batch]

ITEMS = 7


@dataclass(frozen=True)
class Case:
    """One loss under test.

    Attributes:
        name: for messages.
        factory: makes the loss.
        arguments: of the factory.
        sample: makes a batch, or None for the kit's own.
        features: shapes of features in the kit's own batches.
    """

    name: str
    factory: Callable[..., Loss]
    arguments: Mapping[str, Any]
    sample: Sample | None = None
    features: Shapes = None

    @cached_property
    def item_scope(self) -> bool:
        """Whether the loss promises that a split changes nothing."""
        return self.construct().scope == "item"

    @cached_property
    def known(self) -> Mapping[str, Argument]:
        """The factory's arguments; none of a callable without a signature."""
        try:
            return signature(self.factory)
        except (TypeError, ValueError):
            return {}

    def number(self, name: str) -> float | None:
        """The value of an argument that is a number; None where there is no such argument."""
        if name not in self.known:
            return None
        value = self.arguments.get(name, self.known[name].default)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def construct(self, **other: Any) -> Loss:
        """A new loss."""
        loss: Any = self.factory(**{**self.arguments, **other})
        if not isinstance(loss, Loss):
            fail(self.name, f"gives a {type(loss).__name__}; expected a kdengine.Loss")
        return loss

    def make(self, dtype: torch.dtype = torch.float64, seed: int = 1, /, **other: Any) -> Loss:
        """A new loss, set up as a fit does; with the same parameters for the same seed."""
        loss = self.construct(**other)
        if isinstance(projector := loss.projector, str):
            loss.projector = Host(autoload=False).component("projectors", projector).load()
        example = self.batch(2)
        torch.manual_seed(seed)
        with torch.no_grad():
            loss.setup(cast(example, torch.float32))
        return loss.to(dtype)

    def batch(self, size: int = ITEMS, seed: int = 0) -> Batch:
        """A random batch in float64."""
        generator = torch.Generator().manual_seed(seed)
        if self.sample is None:
            return random_batch(self.construct(), size, generator, self.features)
        batch = self.sample(size, generator)
        attach_models(batch, generator, teacher_trains=self.construct().needs.teacher_training)
        return batch

    def objective(self, loss: Loss) -> Objective:
        """The engine's objective of this loss alone."""
        objective = Objective({"loss": loss}, {})
        objective.place(torch.device("cpu"), torch.float64)
        return objective


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gave: the scalar, each term's share, and the gradients (zero where none arrived)."""

    total: Tensor
    shares: list[Tensor]
    gradients: list[Tensor]


@dataclass(frozen=True)
class Part:
    """A micro-batch, and the objective of the process that has it."""

    objective: Objective
    batch: Batch


def evaluate(case: Case, loss: Loss, batch: Batch, split: Sequence[int] | None = None) -> Outcome:
    """Value and gradient as the engine computes them, over micro-batches of the given sizes.

    What the loss remembers is afterwards as it was before.
    """
    batch, leaves = differentiable(batch)
    objective = case.objective(loss)
    parts = [Part(objective, part) for part in (divide(batch, split) if split else [batch])]
    with remembered(loss):
        outcome = reduce(parts, [*leaves, *loss.parameters()])
        objective.end_step()
        return outcome


def divide(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """Micro-batches of the given sizes, in the graph of the whole."""
    return [rows(batch, slice(*pair)) for pair in pairwise([0, *accumulate(sizes)])]


def reduce(parts: Sequence[Part], leaves: Sequence[Tensor]) -> Outcome:
    """The sum over micro-batches, each divided by the items of all."""
    masks = [part.objective.masks(without_outputs(part.batch)) for part in parts]
    counts = [part.objective.count(part.batch, mask) for part, mask in zip(parts, masks, strict=True)]
    divisors = [sum(column) for column in zip(*counts, strict=True)]
    results = [
        part.objective.evaluate(part.batch, mask, count, divisors)
        for part, mask, count in zip(parts, masks, counts, strict=True)
    ]
    total = torch.stack([result[0] for result in results]).sum()
    shares = [torch.stack(column).sum() for column in zip(*(result[1] for result in results), strict=True)]
    return Outcome(total.detach(), shares, differentiate(total, leaves))


def differentiate(total: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of every leaf."""
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    given = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, given, strict=True)]


def terms_of(loss: Loss, batch: Batch) -> dict[str, Tensor]:
    """Each term's values as the loss gives them, before any reduction."""
    values = loss.per_item(batch) if loss.scope == "item" else loss.value(batch)
    return {loss.terms[0]: values} if isinstance(values, Tensor) else dict(values)


def memory(loss: Loss) -> dict[str, Any]:
    """A copy of what the loss remembers beside its parameters: buffers and extra state."""
    parameters = {name for name, _ in loss.named_parameters()}
    return {name: _copy(value) for name, value in loss.state_dict().items() if name not in parameters}


@contextmanager
def remembered(loss: Loss) -> Iterator[None]:
    """Give the loss back what it remembered before."""
    before = memory(loss)
    try:
        yield
    finally:
        if before:
            loss.load_state_dict(before, strict=False)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
