"""The optimizer of a fit, from an instance or a factory, and whether the engine can step it.

The engine sums the gradients of a whole step before it calls ``step()``: an optimizer that wants to compute gradients
itself (a closure), or weights of its own while it is evaluated, cannot be right there and is refused before training.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from kdengine.api import ConfigurationError
from kdengine.engine.notices import Notices
from kdengine.engine.shards import is_sharded

Named: TypeAlias = list[tuple[str, nn.Parameter]]
OptimizerLike: TypeAlias = torch.optim.Optimizer | Callable[[Named], torch.optim.Optimizer]

BROUGHT = ("losses.", "teacher.")
"""What the names of parameters begin with that train beside the student: of losses, of a teacher that learns."""

TWO_STEPS: Final = (("first_step", "second_step"), ("ascent_step", "descent_step"))
"""Methods of optimizers that want gradients between two steps."""

_INSISTS = re.compile(r"assert\s+closure|if\s+(closure\s+is\s+None|not\s+closure)\s*:\s*raise")
_GUARDS = re.compile(r"closure\s+is\s+(not\s+)?None|if\s+(not\s+)?closure\b|closure\s+and\b")

FACTORY_LINE = "optimizer=lambda named: torch.optim.{name}([p for _, p in named], lr=1e-3)"
"""What to write where no optimizer was given."""


def make_optimizer(given: OptimizerLike, named: Named, notices: Notices) -> torch.optim.Optimizer:
    """Call a factory with the named parameters; to an instance, add those that are not the student's as groups.

    Args:
        given: what the user gave.
        named: the parameters that train.
        notices: of the engine.

    Raises:
        ConfigurationError: it is none, holds nothing of the student, or has another interface.
    """
    if isinstance(given, torch.optim.Optimizer):
        check_interface(given)
        _add_brought(given, named)
        return given
    optimizer = _call(given, named)
    check_interface(optimizer)
    if missing := [name for name, _ in _missing(optimizer, named) if name.startswith(BROUGHT)]:
        notices.once(
            f"the optimizer's factory leaves out {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}, which "
            "losses or the teacher bring to be trained; they stay as they are. The factory is given them by name: "
            + FACTORY_LINE.format(name=type(optimizer).__name__)
        )
    return optimizer


def _call(given: Any, named: Named) -> torch.optim.Optimizer:
    if not callable(given):
        known = _class_named(given) if isinstance(given, str) else None
        raise ConfigurationError(
            f"optimizer is {given!r}; expected a torch.optim.Optimizer, or a function that makes one: "
            + FACTORY_LINE.format(name=known or "AdamW")
        )
    check_call("the optimizer factory", given, named=named)
    optimizer = given(named)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigurationError(
            f"the optimizer factory returned a {type(optimizer).__name__}; expected a torch.optim.Optimizer"
        )
    return optimizer


def _class_named(word: str) -> str | None:
    """The class of torch that a word means, such as ``adam``."""
    known = {name.lower(): name for name in vars(torch.optim) if isinstance(vars(torch.optim)[name], type)}
    return known.get(word.lower().replace("_", "").removeprefix("torch.optim."))


def _missing(optimizer: torch.optim.Optimizer, named: Named) -> Named:
    """The parameters that it does not hold.

    Raises:
        ConfigurationError: it holds none.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [(name, p) for name, p in named if id(p) not in held]
    if len(missing) == len(named):
        raise ConfigurationError("the optimizer holds no parameter of the student; was it made for another model?")
    return missing


def _add_brought(optimizer: torch.optim.Optimizer, named: Named) -> None:
    missing = _missing(optimizer, named)
    for prefix in BROUGHT:
        if extra := [p for name, p in missing if name.startswith(prefix)]:
            optimizer.add_param_group({"params": extra})


def check_interface(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose ``step()`` is not a whole update from the gradients that are there.

    Raises:
        ConfigurationError: its step needs a closure, takes two passes, or its weights depend on a mode.
    """
    name = type(optimizer).__name__
    if needed := required_arguments(optimizer.step):
        raise ConfigurationError(
            f"{name}.step() needs {', '.join(needed)}: it computes the loss again by itself, but the engine has summed "
            "the gradients of the whole step when it steps the optimizer; use one that takes them as they are, such as "
            "SGD or AdamW"
        )
    if any(all(hasattr(optimizer, method) for method in pair) for pair in TWO_STEPS):
        raise ConfigurationError(
            f"{name} updates in two steps, with gradients computed in between (sharpness-aware minimization); the "
            "engine computes gradients once and calls step(). Use the optimizer inside it "
            f"({type(getattr(optimizer, 'base_optimizer', None) or torch.optim.SGD).__name__}), or train in your own "
            "loop with engine.objective(batch)"
        )
    if wants_closure(type(optimizer)):
        raise ConfigurationError(
            f"{name}.step() refuses to run without a closure, by which it computes gradients itself; the engine has "
            "summed those of the whole step when it steps the optimizer; use one that takes them as they are"
        )
    inner = getattr(optimizer, "optimizer", optimizer)  # a wrapper passes both on, whether there is anything to switch
    if callable(getattr(inner, "train", None)) and callable(getattr(inner, "eval", None)):
        raise ConfigurationError(
            f"{name} keeps one set of weights for training and another for evaluation (train() and eval()); the engine "
            "does not switch them, so evaluations, checkpoints and the exported student would be of the wrong ones"
        )


def wants_closure(kind: type[torch.optim.Optimizer]) -> bool:
    """Whether the source of an optimizer's ``step(closure=None)`` insists on a closure; False where it is not known."""
    if kind.__module__.startswith("torch."):
        return False
    try:
        code = inspect.getsource(kind.step)
    except (OSError, TypeError):
        return False
    if _INSISTS.search(code):
        return True
    return "closure()" in code and not _GUARDS.search(code)


def required_arguments(function: Callable[..., Any]) -> list[str]:
    """The arguments without which a function cannot be called.

    >>> required_arguments(lambda closure, scale=1.0: None)
    ['closure']
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    # torch's schedulers put a function with the method's own signature, self included, in the place of step
    asked = (p for p in parameters if p.default is inspect.Parameter.empty and p.kind not in variadic)
    return [p.name for p in asked if p.name != "self"]


def check_call(what: str, function: Callable[..., Any], **given: Any) -> None:
    """Refuse a factory that cannot be called with what it is given by position.

    >>> check_call("the factory", lambda optimizer: None, optimizer=1, steps=10)
    Traceback (most recent call last):
        ...
    kdengine.api.errors.ConfigurationError: the factory is called with (optimizer, steps): too many positional arguments

    Raises:
        ConfigurationError: it takes more or fewer arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: nothing is known of its arguments
        return
    try:
        signature.bind(*given.values())
    except TypeError as error:
        raise ConfigurationError(f"{what} is called with ({', '.join(given)}): {error}") from None


def clipped_together(parameters: Sequence[nn.Parameter], learning: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """Parameters by the model whose gradient norm limits them: student and losses first, then a teacher that learns."""
    of_teacher = {id(parameter) for module in learning for parameter in module.parameters()}
    parts = [[p for p in parameters if (id(p) in of_teacher) is taught] for taught in (False, True)]
    return [part for part in parts if part]


def part_kinds(optimizer: torch.optim.Optimizer) -> None:
    """Step shards and whole parameters of one group one by one: a fused or foreach kernel takes one kind only.

    Raises:
        ConfigurationError: the optimizer was made before the student was sharded.
    """
    for group in optimizer.param_groups:
        kinds = {is_sharded(parameter) for parameter in group["params"]}
        if len(kinds) == 2:
            group.update({key: False for key in ("foreach", "fused") if key in group})
    if not any(is_sharded(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        raise ConfigurationError(
            "the optimizer holds parameters from before the student was sharded; pass a factory: "
            "optimizer=lambda named: ..."
        )
