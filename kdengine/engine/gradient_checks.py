"""Warnings about what trains nothing: parameters that no loss reaches, features without a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from kdengine.api.errors import warn
from kdengine.engine.notices import Notices

SHOWN = 8
"""Most names that a warning lists."""


def warn_of_untrained(student: nn.Module) -> None:
    """Name the student's parameters that train but got no gradient; call it once, when a step's gradients are complete.

    An optimizer leaves them as they are, so a head or a branch that no loss reads stays untrained without a word.
    """
    trainable = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    idle = [name for name, parameter in trainable.items() if parameter.grad is None]
    if idle:
        warn(
            f"{len(idle)} of the student's {len(trainable)} trainable parameters got no gradient in the first step: "
            f"{listed(idle)}. No loss depends on them, so they stay as they are. Of a model with several outputs, name "
            "the one that a loss reads by Engine(output=...); parameters that shall not train are told by "
            "requires_grad_(False)",
        )


def frozen_parameters(student: nn.Module, held: Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
    """The student's parameters that do not train and that the optimizer does not hold."""
    known = {id(parameter) for parameter in held}
    return {n: p for n, p in student.named_parameters() if not p.requires_grad and id(p) not in known}


def warn_of_unheld(frozen: Mapping[str, nn.Parameter], notices: Notices) -> None:
    """Name the parameters that were thawed in the middle of a fit, which no optimizer steps."""
    thawed = [name for name, parameter in frozen.items() if parameter.requires_grad]
    if thawed:
        notices.once(
            f"the student's {listed(thawed)} was set to require a gradient during the fit, but the optimizer does not "
            "hold it, so that it does not train. Let it require gradients before the fit, with a learning rate of 0 in "
            "a parameter group of its own until it shall train, or pass an optimizer instance that holds all parameters"
        )


def warn_of_constant_features(features: Mapping[str, Tensor]) -> None:
    """Name the student's features through which no gradient can flow, where one is wanted."""
    constant = [path for path, feature in features.items() if feature.is_floating_point() and not feature.requires_grad]
    if constant:
        warn(
            f"no gradient flows through the student's features {listed(constant)}: all that comes before them is "
            "frozen (requires_grad_(False)) or detached, so a loss on them trains no parameter of the student",
        )


def warn_of_uncounted(terms: Sequence[str], epoch: int, notices: Notices) -> None:
    """Name the terms of which no item counted in an epoch: their gradient was 0."""
    if terms:
        notices.once(
            f"no item of epoch {epoch} counts in {listed(terms)}: none has a label (all are the loss's ignore_index) "
            "or a place in the mask, so nothing was learned by it"
        )


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many there are beside them.

    >>> listed(f"layer{k}" for k in range(10))
    "'layer0', 'layer1', 'layer2', 'layer3', 'layer4', 'layer5', 'layer6', 'layer7' and 2 more"
    """
    every = list(names)
    more = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(map(repr, every[:SHOWN])) + more
