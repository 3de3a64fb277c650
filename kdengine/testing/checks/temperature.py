"""The factor T^2 of a softened term."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kdengine.api import Batch
from kdengine.testing.case import Case, differentiate, remembered, terms_of
from kdengine.testing.samples import change, differentiable
from kdengine.testing.trial import Trial, promises

MIDDLE = 3.0
FACTORS = (2.0, 3.0)
SAME = 1e-6
"""In powers of T."""
HIGH = (50.0, 100.0)
SMALL = 0.1
"""Factor of the logits at a high temperature, so that exp(z / T) is 1 + z / T."""
FALL = 0.3
"""What may be lost of the gradient; without the factor T^2 three quarters are lost, with a factor T one half."""


@promises("temperature", "a softened term is multiplied by T^2, so that its gradient keeps its size when T rises")
def temperature(case: Case, trial: Trial) -> None:
    """Logits and temperature times c give c^2 times the value; where T does not just divide logits, by the gradient.

    A term that only sees z / T is c^k times as large for c z and c T, where k is the power of T that it is multiplied
    by: an exact test. Of other terms, as those on standardised logits, it compares the gradient at two temperatures.
    """
    if case.number("temperature") is None:
        trial.skip("it has no argument temperature that is a number")
    made = case.make()
    if not made.needs.logits or list(made.parameters()):
        trial.skip("it is not on logits, or on logits through parameters of its own")
    powers = _powers(case)
    softened = [term for term, power in powers.items() if power is not None]
    if softened:
        trial.tries(
            f"{', '.join(softened)} with logits and T multiplied by {' and '.join(f'{factor:g}' for factor in FACTORS)}"
        )
    for term in softened:
        power = powers[term] or 0.0
        if not trial.measure(abs(power - 2), SAME):
            trial.fail(
                f"{term!r} is softened and multiplied by temperature**{round(power, 3) + 0.0:g}: twice the logits at "
                f"twice the temperature give {2**power:.3g} times the value, expected 4; multiply it by temperature**2"
            )
    others = [term for term in powers if term not in softened] if case.item_scope else []
    _compare_gradients(case, trial, others)
    if not trial.attempts:
        trial.skip("no term depends on the temperature as a softened one does")


def _powers(case: Case) -> dict[str, float | None]:
    """The power k of T of each term that is a function of z / T times T^k; None for the others."""
    base, hotter = _values(case, 1.0, MIDDLE), _values(case, 1.0, 2 * MIDDLE)
    scaled = {factor: _values(case, factor, factor * MIDDLE) for factor in FACTORS}
    found: dict[str, float | None] = {}
    for term, value in base.items():
        counts = value.abs() > SAME * value.abs().max()
        powers = [(scaled[factor][term][counts] / value[counts]).log() / math.log(factor) for factor in FACTORS]
        every = torch.cat([power.flatten() for power in powers])
        depends = not torch.allclose(value, hotter[term], rtol=SAME, atol=0.0)
        agree = bool(every.numel()) and bool(every.isfinite().all()) and float(every.max() - every.min()) < SAME
        found[term] = float(every.mean()) if depends and agree else None
    return found


def _values(case: Case, factor: float, at: float) -> Mapping[str, Tensor]:
    loss = case.make(temperature=at)
    with remembered(loss), torch.no_grad():
        return terms_of(loss, _scaled(case.batch(), factor))


def _compare_gradients(case: Case, trial: Trial, terms: list[str]) -> None:
    """What of the gradient at the student's logits is lost from one high temperature to another."""
    low, high = (_sizes(case, at) for at in HIGH)
    reached = [term for term in terms if low[term] > 0 and high[term] != low[term]]
    if reached:
        trial.tries(f"the gradient of {', '.join(reached)} at T = {HIGH[0]:g} and {HIGH[1]:g}, on small logits")
    for term in reached:
        lost = 1 - high[term] / low[term]
        if not trial.measure(max(0.0, lost), FALL):
            trial.fail(
                f"from temperature {HIGH[0]:g} to {HIGH[1]:g} the gradient of {term!r} falls to {1 - lost:.3g} of its "
                f"size; expected at least {1 - FALL:.3g}: multiply the softened term by temperature**2 (without it a "
                "gradient falls to 0.25)"
            )


def _sizes(case: Case, at: float) -> dict[str, float]:
    """The size of each term's gradient at the student's logits."""
    loss = case.make(temperature=at)
    batch, _ = differentiable(_scaled(case.batch(), SMALL))
    logits = batch.student.logits
    with remembered(loss):
        return {
            term: float(differentiate(value.sum(), [logits])[0].norm()) for term, value in terms_of(loss, batch).items()
        }


def _scaled(batch: Batch, factor: float) -> Batch:
    def scale(tensor: Tensor) -> Tensor:
        return tensor * factor if tensor.is_floating_point() else tensor

    return change(batch, lambda tensor: tensor, scale, scale)
