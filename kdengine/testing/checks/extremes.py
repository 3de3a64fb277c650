"""Large logits in every precision, probabilities that underflow, and outputs without any spread."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdengine.api import Batch, Needs
from kdengine.testing.case import Case, evaluate
from kdengine.testing.samples import cast, change, make_equal, outputs_of
from kdengine.testing.trial import Trial, promises

EXTREME = 1e4
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _signs(logits: Tensor) -> Tensor:
    """Several large classes beside several small ones."""
    return logits.sign() * EXTREME


def _one_hot(logits: Tensor) -> Tensor:
    """One large class in each row; the probability of all others underflows to 0."""
    return torch.where(logits == logits.amax(-1, keepdim=True), EXTREME, -EXTREME).to(logits.dtype)


LARGE: dict[str, Callable[[Tensor], Tensor]] = {
    f"logits of +-{EXTREME:g}": _signs,
    f"one logit of {EXTREME:g} and others of -{EXTREME:g}": _one_hot,
}


@promises("precision", "large logits give a finite loss and gradient in any precision, also where a probability is 0")
def precision(case: Case, trial: Trial) -> None:
    """Large logits in half precision and in float32."""
    named = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    trial.tries(f"{' and '.join(LARGE)}, in {', '.join(named)}")
    for dtype, name in zip(DTYPES, named, strict=True):
        loss = case.make(torch.float32)
        for kind, pattern in LARGE.items():
            batch = cast(case.batch(), dtype)
            for output in outputs_of(batch):
                if output._logits is not None:
                    output._logits.copy_(pattern(output._logits))
            outcome = evaluate(case, loss, batch)
            trial.finite(f"{kind} in {name}: the loss", [outcome.total, *outcome.shares])
            trial.finite(f"{kind} in {name}: the gradient", outcome.gradients)


@promises("no spread", "equal outputs and outputs of zeros give a finite loss and gradient")
def degenerate(case: Case, trial: Trial) -> None:
    """Where a norm, a distance or a variance is zero."""
    loss = case.make()
    for what, batch in _without_spread(case.batch(), loss.needs).items():
        trial.tries(what)
        outcome = evaluate(case, loss, batch)
        trial.finite(f"{what}: the loss", [outcome.total, *outcome.shares])
        trial.finite(f"{what}: the gradient", outcome.gradients)


def _without_spread(batch: Batch, needs: Needs) -> dict[str, Batch]:
    tried = {
        "student outputs of zeros": change(batch, _same, torch.zeros_like, _same),
        "outputs of zeros on both sides" if needs.teacher else "zeros": change(
            batch, _same, torch.zeros_like, torch.zeros_like
        ),
        "the same output for every item": change(batch, _same, _first, _first),
    }
    equal = make_equal(batch, needs)
    return tried if equal is None else {"a student equal to its teacher": equal, **tried}


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _first(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor).clone()
