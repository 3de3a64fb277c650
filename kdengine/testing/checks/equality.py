"""A student that gives what its teacher gives."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api import Batch, Loss
from kdengine.testing.case import Case, evaluate
from kdengine.testing.samples import change, make_equal
from kdengine.testing.trial import ROUNDING, Trial, promises

TINY = 1e-10
"""Of a value or gradient where student and teacher are equal, beside that where they differ, and at most of 1."""
NEAR = (1e-3, 1e-1, 1.0)
"""Sizes of random changes to the student's outputs."""


@promises("equality", "where student and teacher are equal, the value is zero or a minimum, as the class claims")
def equality(case: Case, trial: Trial) -> None:
    """What ``at_equality`` claims of value and gradient."""
    loss = case.make()
    claim = loss.at_equality
    if claim is None:
        trial.skip("at_equality is None: the class claims nothing")
    batch = make_equal(case.batch(), loss.needs)
    if batch is None:
        trial.skip("the student's outputs and the teacher's have different shapes here")
    trial.tries(f"at_equality = {claim!r} on a batch whose student equals its teacher")
    outcome, apart = evaluate(case, loss, batch), evaluate(case, loss, case.batch())
    if claim == "zero":
        for term, share, usual in zip(loss.terms, outcome.shares, apart.shares, strict=True):
            value = float(share)
            if not trial.measure(abs(value), _tiny(float(usual))):
                trial.fail(f"{term} is {value:.3g} where student and teacher are equal; at_equality claims zero")
    _flat(trial, loss, outcome.gradients, apart.gradients)
    if claim == "minimum":
        _lowest(case, trial, loss, batch, float(outcome.total))


def _tiny(usual: float) -> float:
    """What counts as zero beside a value where student and teacher differ; what rounding leaves always does."""
    return max(TINY * min(1.0, abs(usual)), ROUNDING)


def _flat(trial: Trial, loss: Loss, gradients: list[Tensor], usual: list[Tensor]) -> None:
    """No gradient reaches the student; the loss's own parameters may have one."""
    own = len(list(loss.parameters()))
    steepest, elsewhere = (
        max((float(slope.abs().max()) for slope in every[: len(every) - own] if slope.numel()), default=0.0)
        for every in (gradients, usual)
    )
    if not trial.measure(steepest, _tiny(elsewhere)):
        trial.fail(
            f"the student gets a gradient of {steepest:.3g} where it equals its teacher; "
            f"at_equality claims {loss.at_equality!r}"
        )


def _lowest(case: Case, trial: Trial, loss: Loss, batch: Batch, value: float) -> None:
    """Random students near and far cost no less."""
    trial.tries(f"students changed at random by {', '.join(map(format, NEAR))}")
    generator = torch.Generator().manual_seed(6)
    for size in NEAR:
        for _ in range(2):
            other = float(evaluate(case, loss, _moved(batch, size, generator)).total)
            if not trial.measure(max(0.0, value - other) / max(abs(value), ROUNDING / 1e-12), 1e-12):
                trial.fail(
                    f"a student changed by {size:g} costs {other:.6g}, less than the {value:.6g} of one that equals "
                    "its teacher; at_equality claims a minimum there"
                )


def _moved(batch: Batch, size: float, generator: torch.Generator) -> Batch:
    """The batch with random changes to the student's outputs."""

    def same(tensor: Tensor) -> Tensor:
        return tensor

    def move(tensor: Tensor) -> Tensor:
        return tensor + size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    return change(batch, same, move, same)
