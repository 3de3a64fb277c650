"""Values that are not reduced, and a sum that does not depend on how the batch is divided."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from kdengine.api import Batch, Loss, Weight
from kdengine.testing.case import ITEMS, Case, Outcome, Part, differentiate, divide, evaluate, reduce, remembered
from kdengine.testing.samples import differentiable, without_outputs
from kdengine.testing.trial import Trial, promises

SPLITS = ((3, 4), (1, 6), (2, 3, 2), (1,) * ITEMS)
RANKS = (((3, 1), (2, 1)), ((6,), (1,)), ((1, 2), (3,), (1,)))
"""Micro-batches of each process."""
COUNTING: Mapping[str, Mapping[str, Tensor]] = {
    "": {},
    ", some items masked": {"mask": torch.arange(ITEMS) % 3 != 2},
    ", items weighted": {"weights": torch.arange(ITEMS, dtype=torch.float64) / 3},
}
"""Which items count, and how much: all, two in three, each by a weight of its own (the first of 0)."""

W = TypeVar("W")


@promises("values", "every declared term is one value per item, or one number for scope 'batch', and not reduced")
def values(case: Case, trial: Trial) -> None:
    """Every declared term, a value per item and no reduction; a scalar for scope ``"batch"``."""
    loss, batch = case.make(), case.batch()
    method = loss.per_item if case.item_scope else loss.value
    trial.tries(f"{method.__name__} on {batch.size} items")
    with remembered(loss):
        given = method(batch)
    named = {loss.terms[0]: given} if isinstance(given, Tensor) else given
    what = method.__name__
    trial.require(set(named) == set(loss.terms), f"{what} returned the terms {list(named)}, declared {loss.terms}")
    for term, value in named.items():
        shape = tuple(value.shape)
        if case.item_scope:
            said = f"per_item returned shape {shape} for {term!r} of a batch of {batch.size}, which must not be reduced"
            trial.require(value.ndim > 0 and shape[0] == batch.size, said)
        else:
            trial.require(value.ndim == 0, f"value returned shape {shape} for {term!r}; expected one number")


@promises("weighted sum", "weighted_sum gives what the base class makes of the values, and the same gradient")
def weighted_sum(case: Case, trial: Trial) -> None:
    """``weighted_sum`` against the base class's, for one weight per term and for one per item."""
    loss, source = case.make(), case.batch()
    for kind, weights in _weights(case, loss).items():
        trial.tries(kind)
        results = []
        for method in (loss.weighted_sum, lambda b, w: Loss.weighted_sum(loss, b, w)):
            batch, leaves = differentiable(source)
            with remembered(loss):
                total, sums = method(batch, weights)
                gradients = differentiate(total, [*leaves, *loss.parameters()])
            results.append((total, [sums[term] for term in loss.terms], gradients))
        (total, shares, gradients), (base, base_shares, base_gradients) = results
        what = f"weighted_sum against Loss.weighted_sum with {kind}"
        trial.close(f"{what}: the total", [total], [base], 1e-10)
        trial.close(f"{what}: a term's share", shares, base_shares, 1e-10)
        trial.close(f"{what}: the gradient", gradients, base_gradients, 1e-10)
        trial.require(not any(share.requires_grad for share in shares), "weighted_sum returned shares with a graph")


def _weights(case: Case, loss: Loss) -> dict[str, dict[str, Weight]]:
    choices: dict[str, dict[str, Weight]] = {"a number": {term: 0.5 + at for at, term in enumerate(loss.terms)}}
    if case.item_scope:
        source = case.batch()
        masks = case.objective(loss).masks(without_outputs(source))
        choices["a weight per item"] = {
            term: torch.rand(source.size if mask is None else mask.shape, dtype=torch.float64)
            * (1.0 if mask is None else mask)
            for term, mask in zip(loss.terms, masks, strict=True)
        }
    return choices


@promises("split", "any split of a batch into micro-batches gives the same loss and gradient")
def split(case: Case, trial: Trial) -> None:
    """Any split of a batch gives the same gradient, also where some items do not count."""
    _only_items(case, trial)
    trial.tries(f"micro-batches of {_listed(SPLITS)} in place of {ITEMS}; all items, two in three, and weighted")
    _agree(case, trial, SPLITS, evaluate, lambda sizes: f"with micro-batches of {sizes} in place of ({ITEMS},)")


@promises("processes", "several processes that share a batch give the same loss and gradient as one")
def processes(case: Case, trial: Trial) -> None:
    """Each process counts and differentiates its own items with a loss of its own; counts and gradients are added."""
    _only_items(case, trial)
    trial.tries(f"the arithmetic of processes with micro-batches of {_listed(RANKS)}, here in one")
    _agree(case, trial, RANKS, add_up, lambda ranks: f"with micro-batches of {ranks} in {len(ranks)} processes")


def _agree(
    case: Case,
    trial: Trial,
    ways: Iterable[W],
    compute: Callable[[Case, Loss, Batch, W], Outcome],
    say: Callable[[W], str],
) -> None:
    """Every way to share a batch out gives the loss and gradient of the whole, whichever items count, however much."""
    loss, given = case.make(), case.batch()
    for counting, fields in COUNTING.items():
        batch = given.replace(**fields)
        whole = evaluate(case, loss, batch)
        for way in ways:
            parts = compute(case, loss, batch, way)
            what = f"{say(way)}{counting}, the"
            trial.close(f"{what} loss", [parts.total], [whole.total], 1e-12)
            trial.close(f"{what} gradient", parts.gradients, whole.gradients, 1e-12)


def add_up(case: Case, loss: Loss, batch: Batch, ranks: Sequence[Sequence[int]]) -> Outcome:
    """What processes with these micro-batches arrive at together, each with its own copy of the loss."""
    batch, leaves = differentiable(batch)
    losses = [copy.deepcopy(loss) for _ in ranks]
    micro_batches = iter(divide(batch, [size for sizes in ranks for size in sizes]))
    parts = [
        Part(case.objective(one), next(micro_batches)) for one, sizes in zip(losses, ranks, strict=True) for _ in sizes
    ]
    own = [list(one.parameters()) for one in losses]
    outcome = reduce(parts, [*leaves, *(parameter for parameters in own for parameter in parameters)])
    rest = iter(outcome.gradients[len(leaves) :])
    by_rank = [[next(rest) for _ in parameters] for parameters in own]
    added = [torch.stack(column).sum(0) for column in zip(*by_rank, strict=True)]
    return Outcome(outcome.total, outcome.shares, [*outcome.gradients[: len(leaves)], *added])


def _only_items(case: Case, trial: Trial) -> None:
    if not case.item_scope:
        trial.skip("a loss of scope 'batch' compares items with each other, so a split does change it")


def _listed(choices: Sequence[object]) -> str:
    return ", ".join(str(choice) for choice in choices)
