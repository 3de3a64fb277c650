"""State through a checkpoint, and the same results for the same batches."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from kdengine.api import Batch, Loss
from kdengine.engine import codec
from kdengine.testing.case import Case, Outcome, Part, evaluate, reduce
from kdengine.testing.report import CheckFailed
from kdengine.testing.samples import differentiable
from kdengine.testing.trial import Trial, promises

STEPS = 5
"""Of training; the checkpoint is taken after all but two."""
RATE = 0.1


@promises("state", "training goes on from a checkpoint as it would have without one, bit for bit")
def state(case: Case, trial: Trial) -> None:
    """A few steps, a round trip of the state in the middle into a new loss, and the rest of the steps with both."""
    batches = [case.batch(size, seed) for seed, size in enumerate((7, 3, 7, 4, 7))]
    loss, fresh = case.make(), case.make(torch.float64, 2)
    trial.tries(f"{STEPS} steps of gradient descent, a checkpoint read back into a new loss after {STEPS - 2}")
    _train(case, loss, batches[:-2])
    try:
        tree, stored = codec.encode(dict(loss.state_dict()))
    except codec.UnsupportedState as error:
        trial.fail(f"its state cannot be checkpointed: {error}", error)
    fresh.load_state_dict(codec.decode(json.loads(json.dumps(tree)), {k: v.clone() for k, v in stored.items()}))
    expected, got = (_train(case, one, batches[-2:], start=STEPS - 2) for one in (loss, fresh))
    what = "after a round trip of its state, the"
    for resumed, straight in zip(got, expected, strict=True):
        trial.close(f"{what} loss", [resumed.total], [straight.total], 0.0)
        trial.close(f"{what} gradient", resumed.gradients, straight.gradients, 0.0)
    for (name, one), other in zip(_tensors(loss), (value for _, value in _tensors(fresh)), strict=True):
        trial.close(f"{what} state {name!r} two steps later", [other.double()], [one.double()], 0.0)


def _train(case: Case, loss: Loss, batches: Sequence[Batch], start: int = 0) -> list[Outcome]:
    """Steps of the loss's own parameters; what it remembers stays."""
    outcomes = []
    for step, source in enumerate(batches, start):
        torch.manual_seed(step)
        batch, leaves = differentiable(source)
        parameters = list(loss.parameters())
        objective = case.objective(loss)
        outcomes.append(reduce([Part(objective, batch)], [*leaves, *parameters]))
        with torch.no_grad():
            for parameter, slope in zip(parameters, outcomes[-1].gradients[len(leaves) :], strict=True):
                parameter.sub_(RATE * slope)
        objective.end_step()
    return outcomes


def _tensors(loss: Loss) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in loss.state_dict().items() if isinstance(value, Tensor)]


@promises("repeats", "the same batch and state give the same bits, whatever came between")
def repeats(case: Case, trial: Trial) -> None:
    """The same batch gives the same bits, also after another batch."""
    loss, batch = case.make(), case.batch()
    trial.tries("one batch twice with another between, and its state put back")
    outcomes = []
    for _ in range(2):
        torch.manual_seed(2)
        outcomes.append(evaluate(case, loss, batch))
        evaluate(case, loss, case.batch(3, seed=5))
    first, second = outcomes
    what = "the second time on the same batch, after another one,"
    try:
        trial.close(f"{what} the loss", [second.total], [first.total], 0.0)
        trial.close(f"{what} the gradient", second.gradients, first.gradients, 0.0)
    except CheckFailed as error:
        trial.fail(f"{error.said}; what a loss remembers must be in its state: a buffer, or get_extra_state", error)
