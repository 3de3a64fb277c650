"""The checks of a loss, each of one promise."""

from kdengine.testing.checks import (
    classes,
    compilation,
    equality,
    extremes,
    gradient,
    items,
    reduction,
    scalars,
    state,
    synchronization,
    temperature,
    untouched,
)
from kdengine.testing.trial import Check

CHECKS: tuple[Check, ...] = (
    reduction.values,
    state.repeats,
    reduction.weighted_sum,
    reduction.split,
    reduction.processes,
    items.unlabelled,
    items.poison,
    untouched.tensors,
    untouched.models,
    gradient.gradient,
    items.small_batches,
    extremes.precision,
    extremes.degenerate,
    state.state,
    scalars.scalars,
    equality.equality,
    temperature.temperature,
    classes.classes,
    compilation.compilation,
    synchronization.synchronization,
)
"""In the order in which they run."""
