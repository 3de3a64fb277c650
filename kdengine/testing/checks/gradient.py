"""The gradient against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from kdengine.api import Weight
from kdengine.testing.case import Case, remembered
from kdengine.testing.constants import Constants, Replay
from kdengine.testing.samples import differentiable
from kdengine.testing.trial import Trial, promises

STEP = 1e-5
TOLERANCE = 1e-5
DIRECTIONS = 6
"""Random ones for each tensor, beside that of its gradient."""
SMALL = 1e-3
"""A gradient below this part of the value is measured against that, as differences of the value are rounded."""
LEAST = 4 * torch.finfo(torch.float64).eps / STEP / TOLERANCE
"""A gradient below this is measured against it: terms that are about 1 are rounded, however small their sum is."""


@promises("gradient", "the gradient is that of finite differences in float64")
def gradient(case: Case, trial: Trial) -> None:
    """Central differences along the gradient and along random directions, for each tensor that takes a gradient."""
    loss = case.make()
    batch, leaves = differentiable(case.batch(4), teacher=loss.needs.teacher_gradients)
    leaves += loss.parameters()
    weights: dict[str, Weight] = {term: 0.5 + at for at, term in enumerate(loss.terms)}
    constants = Constants()

    def total(mode: Constants | None) -> Tensor:
        torch.manual_seed(3)
        with nullcontext() if mode is None else mode:
            return loss.weighted_sum(batch, weights)[0]

    with remembered(loss):
        value = total(constants if loss.detaches else None)
        given = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else []
    least = max(SMALL * abs(float(value.detach())), LEAST)
    reached = [(leaf, slope) for leaf, slope in zip(leaves, given, strict=False) if slope is not None]
    trial.require(bool(reached), "its value does not depend on the student's outputs")
    held = ", what it detaches held at its value" if loss.detaches else ""
    trial.tries(f"{DIRECTIONS + 1} directions for each of {len(reached)} tensors, steps of {STEP:g}{held}")

    def probe() -> float:
        with remembered(loss):
            return float(total(Replay(constants) if loss.detaches else None).detach())

    for leaf, slope in reached:
        size = max(float(slope.norm()), least)
        for direction in _directions(slope):
            expected = float((slope * direction).sum())
            got = _slope(leaf, direction, probe)
            if not trial.measure(abs(got - expected) / size, TOLERANCE):
                trial.fail(
                    f"the gradient is not that of finite differences: along a direction of a tensor "
                    f"{tuple(leaf.shape)} it is {expected:.6g}, they give {got:.6g}{_advice(loss.detaches)}"
                )


def _directions(slope: Tensor) -> Iterator[Tensor]:
    """Of length 1: that of the gradient, where it has one, and random ones."""
    generator = torch.Generator().manual_seed(4)
    norm = float(slope.norm())
    if norm and math.isfinite(norm):
        yield slope / norm
    for _ in range(DIRECTIONS):
        direction = torch.randn(slope.shape, generator=generator, dtype=slope.dtype)
        yield direction / direction.norm()


def _slope(leaf: Tensor, direction: Tensor, probe: Callable[[], float]) -> float:
    """The central difference along a direction; the leaf is afterwards as it was."""
    values = []
    before = leaf.detach().clone()
    for step in (STEP, -STEP):
        with torch.no_grad():
            leaf.copy_(before + step * direction)
        values.append(probe())
    with torch.no_grad():
        leaf.copy_(before)
    return (values[0] - values[1]) / (2 * STEP)


def _advice(detaches: bool) -> str:
    return (
        "" if detaches else "; if it means to take a part of its value as a constant, let the class say detaches = True"
    )
