"""Whether stored state can be that of this optimizer and this scheduler, which check next to nothing themselves."""

from __future__ import annotations

import math
from numbers import Number
from typing import Any, Final

import torch
from torch import Tensor

from kdengine._untrusted import shown
from kdengine.engine.tensors import is_dense

_ELEMENTWISE: Final = (
    torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.Adamax, torch.optim.AdamW,
    torch.optim.ASGD, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Rprop, torch.optim.SGD,
)  # fmt: skip
_LIKE_PARAMETER: Final = frozenset(
    {
        "acc_delta", "ax", "exp_avg", "exp_avg_sq", "exp_inf", "grad_avg", "max_exp_avg_sq", "momentum_buffer", "prev",
        "square_avg", "step_size", "sum",
    }
)  # fmt: skip
_ONE_NUMBER: Final = frozenset({"eta", "mu", "mu_product", "step"})


def check_scheduler(scheduler: Any, stored: dict[str, Any]) -> None:
    """Refuse a stored state that cannot be a scheduler's: whatever it holds becomes an attribute of the scheduler.

    Raises:
        TypeError: a value is of another kind than the scheduler's own.
        ValueError: a method would be replaced.
    """
    _check_kinds("scheduler", stored, scheduler.state_dict())
    for key in stored:
        if callable(getattr(type(scheduler), key, None)):
            raise ValueError(f"the scheduler's state holds {shown(key)}, which is a method")


def _check_kinds(what: str, stored: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Refuse values of another kind than a new optimizer or scheduler has, which its next step would stumble over."""
    for key, value in fresh.items():
        expected, found = kind_of(value), kind_of(stored.get(key, value))
        if expected not in (None, found) and (expected, found) != ("a flag", None):
            raise TypeError(f"expected the {what}'s {key} to be {expected}, got {shown(stored.get(key))}")


def kind_of(value: Any) -> str | None:
    """What a value is, None for one that is open: numbers may change their class, and lists their length."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "a flag"
    if isinstance(value, Number) or (isinstance(value, Tensor) and value.numel() == 1):
        return "a number"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


def check_options(stored: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Refuse a group of an optimizer whose options cannot be those that it was made with.

    Raises:
        TypeError: one is of another kind.
        ValueError: one is missing, or the betas are not as many numbers.
    """
    _check_kinds("optimizer", stored, fresh)
    missing = fresh.keys() - stored.keys()
    if missing:
        raise ValueError(f"the optimizer's {', '.join(sorted(missing))} is missing")
    ours, theirs = stored.get("betas", ()), fresh.get("betas", ())
    if len(ours) != len(theirs) or not all(kind_of(beta) == "a number" and 0.0 <= beta < 1.0 for beta in ours):
        raise ValueError(f"expected {len(theirs)} betas of the optimizer, from 0 to below 1, got {shown(ours)}")


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse state that an update cannot use, or that a fused one would read and write beyond the end of.

    Torch's fused kernels take it from the caller that a state is as large and as dense as its parameter: with a state
    of one element they write over whatever lies behind it.

    Raises:
        ValueError: a value cannot be one that the optimizer has made for its parameter.
    """
    known = _LIKE_PARAMETER | _ONE_NUMBER if isinstance(optimizer, _ELEMENTWISE) else frozenset()
    names = {key for state in optimizer.state.values() for key in state} & known
    for parameter, state in optimizer.state.items():
        if state and not names <= state.keys():
            raise ValueError(f"the optimizer's {', '.join(sorted(names - state.keys()))} is missing for a parameter")
        for key, value in state.items():
            if isinstance(value, Tensor) and not is_dense(value):
                raise ValueError(f"the optimizer's {key} has the strides {value.stride()}, expected a dense tensor")
            if key in names and not _fits(key, value, parameter.shape):
                found = tuple(value.shape) if isinstance(value, Tensor) else shown(value)
                raise ValueError(f"the optimizer's {key} is {found}, for a parameter of shape {tuple(parameter.shape)}")


def _fits(key: str, value: Any, shape: torch.Size) -> bool:
    """Whether a torch optimizer can have made this value for a parameter of this shape."""
    if key == "step":  # the power of a beta
        return kind_of(value) == "a number" and 0 <= value < math.inf
    if key in _ONE_NUMBER:
        return kind_of(value) == "a number"
    return value is None or (isinstance(value, Tensor) and value.shape == shape)
