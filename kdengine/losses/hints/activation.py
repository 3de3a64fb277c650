"""Features from behind an activation, where a loss is meant for those before it."""

from __future__ import annotations

from kdengine.api.errors import warn
from kdengine.losses.hints.pairs import Pair

ENOUGH = 32
"""Values of which none is negative by chance in one of four thousand million features."""


def warn_behind_activation(loss: str, names: tuple[str, str], pair: Pair) -> None:
    """Warn where a feature of a pair has no negative value, which one from before a ReLU always has.

    Args:
        loss: its name.
        names: paths of the pair, in the student and in the teacher.
        pair: its features in the first batch.
    """
    behind = [
        f"the {who}'s {name!r}"
        for who, name, feature in zip(("student", "teacher"), names, pair, strict=True)
        if feature.numel() >= ENOUGH and bool((feature >= 0).all())
    ]
    if behind:
        warn(
            f"{loss} compares features before the activation, but {' and '.join(behind)} gave no negative value, as "
            "behind a ReLU; name what goes into the activation: 'layer3.2.relu:input', or the normalization before it"
        )
