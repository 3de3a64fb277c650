"""The contract of a loss, check by check."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Progress, Schedule, Weight
from kdengine.engine import codec
from kdengine.engine.objective import Objective
from kdengine.host import Host
from kdengine.recipe.signature import arguments as signature
from kdengine.testing.report import fail, name_of, require, require_close, require_finite
from kdengine.testing.samples import (
    apply,
    cast,
    change,
    differentiable,
    random_batch,
    rows,
    without_outputs,
)

Sample: TypeAlias = Callable[[int, torch.Generator], Batch]

ITEMS = 7
SPLITS = ((3, 4), (1, 6), (2, 3, 2), (1,) * ITEMS)
EXTREME = 1e4


def check_loss(factory: Callable[..., Loss], /, *, sample: Sample | None = None, **arguments: Any) -> None:
    """Check a loss against everything that the engine relies on, on the CPU and on random batches.

    * ``per_item`` gives one value (or more) per item for each declared term, without a reduction;
    * ``weighted_sum`` agrees with the default of :class:`kdengine.Loss` to 1e-10, in value and gradient;
    * any split of a batch into micro-batches gives the same gradient to 1e-12 (scope ``"item"``);
    * items that do not count may hold NaN; empty batches and batches of one item are finite;
    * the teacher's tensors are left as they are; the gradient agrees with finite differences;
    * half-precision logits of +-1e4 are finite; the state survives a checkpoint; the same batch gives the same bits;
    * an argument typed ``Scalar`` takes a schedule and follows it.

    Args:
        factory: the loss's class, or a function that makes one.
        sample: ``sample(size, generator) -> Batch`` with float64 outputs, for a loss that needs other batches than
            5 classes with class ids and features of width 6. It must allow 0 items.
        arguments: of the factory.

    Raises:
        AssertionError: the first thing that does not hold, and by how much.

    Example:
        >>> from kdengine.losses import LogitMSE
        >>> check_loss(LogitMSE, center=True)
    """
    case = Case(name_of(factory), factory, arguments, sample)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for check in CHECKS:
            if case.item_scope or check not in ITEM_CHECKS:
                case.run(check)


@dataclass(frozen=True)
class Case:
    """One loss under test.

    Attributes:
        name: for messages.
        factory: makes the loss.
        arguments: of the factory.
        sample: makes a batch, or None for the kit's own.
    """

    name: str
    factory: Callable[..., Loss]
    arguments: Mapping[str, Any]
    sample: Sample | None

    @property
    def item_scope(self) -> bool:
        """Whether the loss promises that a split changes nothing."""
        return self.construct().scope == "item"

    def run(self, check: Callable[[Case], None]) -> None:
        """Run one check; what the loss itself raises becomes a failure too."""
        torch.manual_seed(0)
        try:
            check(self)
        except AssertionError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            fail(self.name, f"{check.__name__.removeprefix('check_').replace('_', ' ')} raised {said}", error)

    def construct(self, **other: Any) -> Loss:
        """A new loss."""
        loss: Any = self.factory(**{**self.arguments, **other})
        if not isinstance(loss, Loss):
            fail(self.name, f"gives a {type(loss).__name__}; expected a kdengine.Loss")
        return loss

    def make(self, /, dtype: torch.dtype = torch.float64, **other: Any) -> Loss:
        """A new loss, set up as a fit does; always with the same parameters."""
        loss = self.construct(**other)
        if isinstance(projector := loss.projector, str):
            loss.projector = Host(autoload=False).component("projectors", projector).load()
        torch.manual_seed(1)
        example = self.batch(2)
        with torch.no_grad():
            loss.setup(cast(example, torch.float32))
        return loss.to(dtype)

    def batch(self, size: int = ITEMS, seed: int = 0) -> Batch:
        """A random batch in float64."""
        generator = torch.Generator().manual_seed(seed)
        if self.sample is not None:
            return self.sample(size, generator)
        return random_batch(self.construct(), size, generator)

    def objective(self, loss: Loss) -> Objective:
        """The engine's objective of this loss alone."""
        objective = Objective({self.name: loss}, {})
        objective.place(torch.device("cpu"), torch.float64)
        return objective


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gave: the scalar, each term's share, and the gradients (zero where none arrived)."""

    total: Tensor
    shares: list[Tensor]
    gradients: list[Tensor]


def evaluate(case: Case, loss: Loss, batch: Batch, split: Sequence[int] | None = None) -> Outcome:
    """Value and gradient as the engine computes them, over micro-batches of the given sizes."""
    batch, leaves = differentiable(batch)
    leaves += loss.parameters()
    objective = case.objective(loss)
    bounds = [0, *accumulate(split or (batch.size,))]
    parts = [rows(batch, slice(*pair)) for pair in pairwise(bounds)] if split else [batch]
    masks = [objective.masks(without_outputs(part)) for part in parts]
    counts = [objective.count(part, mask) for part, mask in zip(parts, masks, strict=True)]
    divisors = [sum(column) for column in zip(*counts, strict=True)]
    results = [objective.evaluate(*item, divisors) for item in zip(parts, masks, counts, strict=True)]
    total = torch.stack([result[0] for result in results]).sum()
    shares = [torch.stack(column).sum() for column in zip(*(result[1] for result in results), strict=True)]
    return Outcome(total.detach(), shares, differentiate(total, leaves))


def differentiate(total: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of every leaf."""
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    given = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, given, strict=True)]


# The checks, each of one promise


def check_values(case: Case) -> None:
    """Every declared term, a value per item and no reduction; a scalar for scope ``"batch"``."""
    loss, batch = case.make(), case.batch()
    method = loss.per_item if case.item_scope else loss.value
    values = method(batch)
    named = {loss.terms[0]: values} if isinstance(values, Tensor) else values
    what = method.__name__
    require(set(named) == set(loss.terms), case.name, f"{what} returned the terms {list(named)}, declared {loss.terms}")
    for term, value in named.items():
        shape = tuple(value.shape)
        if case.item_scope:
            said = f"per_item returned shape {shape} for {term!r} of a batch of {batch.size}, which must not be reduced"
            require(value.ndim > 0 and shape[0] == batch.size, case.name, said)
        else:
            require(value.ndim == 0, case.name, f"value returned shape {shape} for {term!r}; expected one number")


def check_weighted_sum(case: Case) -> None:
    """``weighted_sum`` against the base class's, for one weight per term and for one per item."""
    loss = case.make()
    source = case.batch()
    masks = case.objective(loss).masks(without_outputs(source))
    numbers: dict[str, Weight] = {term: 0.5 + at for at, term in enumerate(loss.terms)}
    choices = {"a number": numbers}
    if case.item_scope:
        choices["a weight per item"] = {
            term: torch.rand(source.size if mask is None else mask.shape, dtype=torch.float64)
            * (1.0 if mask is None else mask)
            for term, mask in zip(loss.terms, masks, strict=True)
        }
    for kind, weights in choices.items():
        results = []
        for method in (loss.weighted_sum, lambda b, w: Loss.weighted_sum(loss, b, w)):
            batch, leaves = differentiable(source)
            total, sums = method(batch, weights)
            gradients = differentiate(total, [*leaves, *loss.parameters()])
            results.append((total, [sums[term] for term in loss.terms], gradients))
        (total, shares, gradients), (base, base_shares, base_gradients) = results
        what = f"weighted_sum against Loss.weighted_sum with {kind}"
        require_close(case.name, f"{what}: the total", [total], [base], 1e-10)
        require_close(case.name, f"{what}: a term's share", shares, base_shares, 1e-10)
        require_close(case.name, f"{what}: the gradient", gradients, base_gradients, 1e-10)
        require(
            not any(share.requires_grad for share in shares), case.name, "weighted_sum returned shares with a graph"
        )


def check_split(case: Case) -> None:
    """Any split of a batch gives the same gradient, also where some items do not count."""
    loss, batch = case.make(), case.batch()
    for masked in ("", ", some items masked"):
        if masked:
            batch.mask = torch.arange(batch.size) % 3 != 2
        whole = evaluate(case, loss, batch)
        for split in SPLITS:
            parts = evaluate(case, loss, batch, split)
            what = f"with micro-batches of {split} in place of ({ITEMS},){masked}, the"
            require_close(case.name, f"{what} loss", [parts.total], [whole.total], 1e-12)
            require_close(case.name, f"{what} gradient", parts.gradients, whole.gradients, 1e-12)


def check_poison(case: Case) -> None:
    """Items that do not count may hold anything."""
    loss, clean = case.make(), case.batch()
    clean.mask = torch.arange(clean.size) % 3 != 2
    masks = case.objective(loss).masks(without_outputs(clean))
    dead = torch.stack([~mask.reshape(clean.size, -1).any(1) for mask in masks if mask is not None]).all(0)
    poisoned = change(clean, lambda t: t, lambda t: poison(t, dead), lambda t: poison(t, dead))
    got, expected = evaluate(case, loss, poisoned), evaluate(case, loss, clean)
    require_finite(case.name, "NaN in items that do not count reached the loss", [got.total, *got.shares])
    require_finite(case.name, "NaN in items that do not count reached the gradient", got.gradients)
    outputs = got.gradients[: len(got.gradients) - len(list(loss.parameters()))]
    for gradient in outputs:
        worst = float(gradient[dead].abs().max())
        require(worst == 0.0, case.name, f"items that do not count get a gradient of {worst:.3g}; expected 0")
    require_close(case.name, "NaN in items that do not count: the loss", [got.total], [expected.total], 1e-12)
    require_close(
        case.name,
        "NaN in items that do not count: the gradient of the others",
        got.gradients,
        expected.gradients,
        1e-12,
    )


def poison(tensor: Tensor, dead: Tensor) -> Tensor:
    """NaN in the dead rows."""
    return tensor.masked_fill(dead.view(-1, *[1] * (tensor.ndim - 1)), torch.nan)


def check_teacher(case: Case) -> None:
    """Nothing is written to, and the teacher takes part in the graph only where that was declared."""
    loss = case.make()
    batch, leaves = differentiable(case.batch(), teacher=loss.needs.teacher_gradients)
    seen = [*(batch.teacher.tensors() if batch.has_teacher else []), *leaves, *data_of(batch)]
    before = [tensor.detach().clone() for tensor in seen]
    weights: dict[str, Weight] = dict.fromkeys(loss.terms, 1.0)
    if case.item_scope:
        loss.per_item(batch)
    total, _ = loss.weighted_sum(batch, weights)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True) if leaves else ()
    for tensor, old in zip(seen, before, strict=True):
        if not torch.equal(tensor.detach(), old):
            worst = float((tensor.detach().double() - old.double()).abs().max())
            fail(case.name, f"it changed a tensor of the batch in place, by {worst:.3g}; work on a copy")
    if not batch.has_teacher:
        return
    if not loss.needs.teacher_gradients:
        touched = any(tensor.requires_grad for tensor in batch.teacher.tensors())
        require(not touched, case.name, "it made the teacher's output require a gradient, which needs does not declare")
    else:
        given = {id(leaf) for leaf, grad in zip(leaves, gradients, strict=True) if grad is not None}
        reached = any(id(tensor) in given for tensor in batch.teacher.tensors())
        require(reached, case.name, "needs.teacher_gradients is declared, but no gradient reaches the teacher's output")


def data_of(batch: Batch) -> list[Tensor]:
    """The tensors that come from the loader."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    apply(keep, [batch.inputs, batch.labels, batch.index])
    return found


def check_gradient(case: Case) -> None:
    """The gradient against finite differences."""
    loss = case.make()
    batch, leaves = differentiable(case.batch(4))
    parameters = list(loss.parameters())
    weights: dict[str, Weight] = {term: 0.5 + at for at, term in enumerate(loss.terms)}

    def total(*_: Tensor) -> Tensor:
        return loss.weighted_sum(batch, weights)[0]

    inputs = [leaf for leaf in (*leaves, *parameters) if depends(total(), leaf)]
    require(bool(inputs), case.name, "its value does not depend on the student's outputs")
    try:
        torch.autograd.gradcheck(total, inputs, check_undefined_grad=False)
    except RuntimeError as error:
        fail(case.name, f"the gradient is not that of finite differences: {error}", error)


def depends(total: Tensor, leaf: Tensor) -> bool:
    """Whether a scalar's graph reaches a leaf."""
    return total.requires_grad and torch.autograd.grad(total, [leaf], allow_unused=True)[0] is not None


def check_small_batches(case: Case) -> None:
    """No item, and one item."""
    loss = case.make()
    for size in (0, 1) if case.item_scope else (1,):
        outcome = evaluate(case, loss, case.batch(size))
        what = f"a batch of {size} item{'s' if size != 1 else ''}"
        require_finite(case.name, f"{what}: the loss", [outcome.total, *outcome.shares])
        require_finite(case.name, f"{what}: the gradient", outcome.gradients)


def check_half_precision(case: Case) -> None:
    """Large logits in half precision."""
    for dtype in (torch.float16, torch.bfloat16):
        loss, batch = case.make(torch.float32), cast(case.batch(), dtype)
        for output in (batch.student, *([batch.teacher] if batch.has_teacher else [])):
            if output._logits is not None:
                output._logits.copy_(output._logits.sign() * EXTREME)
        outcome = evaluate(case, loss, batch)
        what = f"logits of +-{EXTREME:g} in {str(dtype).removeprefix('torch.')}"
        require_finite(case.name, f"{what}: the loss", [outcome.total, *outcome.shares])
        require_finite(case.name, f"{what}: the gradient", outcome.gradients)


def check_state(case: Case) -> None:
    """The state goes through a checkpoint into a new loss."""
    loss, batch = case.make(), case.batch()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.25)
    tree, stored = codec.encode(dict(loss.state_dict()))
    fresh = case.make()
    fresh.load_state_dict(codec.decode(json.loads(json.dumps(tree)), stored))
    got, expected = evaluate(case, fresh, batch), evaluate(case, loss, batch)
    require_close(case.name, "after a round trip of its state, the loss", [got.total], [expected.total], 0.0)
    require_close(case.name, "after a round trip of its state, the gradient", got.gradients, expected.gradients, 0.0)


def check_repeats(case: Case) -> None:
    """The same batch gives the same bits, also after another batch."""
    loss, batch = case.make(), case.batch()
    outcomes = []
    for _ in range(2):
        torch.manual_seed(2)
        outcomes.append(evaluate(case, loss, batch))
        evaluate(case, loss, case.batch(3, seed=5))
    first, second = outcomes
    what = "the second time on the same batch, after another one,"
    require_close(case.name, f"{what} the loss", [second.total], [first.total], 0.0)
    require_close(case.name, f"{what} the gradient", second.gradients, first.gradients, 0.0)


class Halving(Schedule):
    """From a value to half of it (from 0 to 0.5), over the whole of training."""

    def __init__(self, start: float) -> None:
        self.start, self.end = start, start / 2 if start else 0.5

    def value(self, progress: Progress) -> float:
        """The point on the line."""
        return self.start + (self.end - self.start) * progress.fraction


def check_scalars(case: Case) -> None:
    """Every ``Scalar`` argument that has a value follows a schedule."""
    try:
        known = signature(case.factory)
    except (TypeError, ValueError):
        return  # a callable without a signature: nothing is typed Scalar
    for name, argument in known.items():
        start = case.arguments.get(name, argument.default)
        if not argument.is_scalar or isinstance(start, bool) or not isinstance(start, int | float):
            continue
        schedule = Halving(float(start))
        loss = case.make(torch.float64, **{name: schedule})
        read = getattr(loss, name, None)
        require(
            type(read) is float,
            case.name,
            f"self.{name} is {read!r} where {name} is a schedule; assign the argument to it, then it is a float",
        )
        case.objective(loss).advance(Progress(step=1, steps=2))
        got, batch = getattr(loss, name), case.batch()
        require(got == schedule.end, case.name, f"self.{name} is {got!r} at the schedule's end, not {schedule.end!r}")
        scheduled = evaluate(case, loss, batch)
        plain = evaluate(case, case.make(torch.float64, **{name: schedule.end}), batch)
        what = f"with {name} scheduled to {schedule.end:g}, not given as {schedule.end:g}, the loss"
        require_close(case.name, what, [scheduled.total], [plain.total], 1e-12)


CHECKS = (
    check_values,
    check_weighted_sum,
    check_split,
    check_poison,
    check_teacher,
    check_gradient,
    check_small_batches,
    check_half_precision,
    check_state,
    check_repeats,
    check_scalars,
)

ITEM_CHECKS = (check_split, check_poison)
"""Promises of the scope ``"item"`` alone."""
