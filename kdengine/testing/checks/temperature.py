"""The factor T^2 that keeps a softened term's gradient at its size."""

from __future__ import annotations

from torch import Tensor

from kdengine.api import Batch
from kdengine.testing.case import Case, differentiate, remembered, terms_of
from kdengine.testing.samples import change, differentiable
from kdengine.testing.trial import Trial, promises

HIGH = (50.0, 100.0)
SMALL = 0.1
"""Factor of the logits, so that exp(z / T) is 1 + z / T."""
FALL = 0.3
"""What may be lost of the gradient; without the factor T^2, three quarters are lost, with a factor T one half."""


@promises(
    "temperature", "a softened term's gradient keeps its size when the temperature rises: it is multiplied by T^2"
)
def temperature(case: Case, trial: Trial) -> None:
    """The gradient of each term at the logits, at two high temperatures."""
    if case.number("temperature") is None:
        trial.skip("it has no argument temperature that is a number")
    low, high = (_sizes(case, at) for at in HIGH)
    reached = [term for term, size in low.items() if size > 0]
    if not reached:
        trial.skip("no gradient reaches the student's logits")
    trial.tries(f"the gradient of {', '.join(reached)} at T = {HIGH[0]:g} and {HIGH[1]:g}, on small logits")
    for term in reached:
        lost = 1 - high[term] / low[term]
        if not trial.measure(max(0.0, lost), FALL):
            trial.fail(
                f"from temperature {HIGH[0]:g} to {HIGH[1]:g} the gradient of {term!r} falls to "
                f"{1 - lost:.3g} of its size; expected at least {1 - FALL:.3g}: multiply the softened term by "
                "temperature**2 (without it a gradient falls to 0.25)"
            )


def _sizes(case: Case, at: float) -> dict[str, float]:
    """The size of each term's gradient at the student's logits."""
    loss = case.make(temperature=at)
    batch, _ = differentiable(_small(case.batch()))
    logits = batch.student._logits
    if not loss.needs.logits or logits is None:
        return {}
    with remembered(loss):
        return {
            term: float(differentiate(value.sum(), [logits])[0].norm()) for term, value in terms_of(loss, batch).items()
        }


def _small(batch: Batch) -> Batch:
    def shrink(tensor: Tensor) -> Tensor:
        return tensor * SMALL if tensor.is_floating_point() else tensor

    return change(batch, lambda tensor: tensor, shrink, shrink)
