"""Why a model could not take the inputs that it was given."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kdengine.api.errors import InputsError
from kdengine.api.structure import describe, first_tensor

WEIGHT_KEYS = frozenset({"sample_weight", "sample_weights", "weight", "weights", "loss_weight", "loss_weights"})
"""What sample weights are called where a loader gives them in a mapping."""

_UNFIT = re.compile(
    r"shapes cannot be multiplied|must have the same dtype|to have the same dtype|should be the same|"
    r"must match the size|expected input\[|Given groups=|Given normalized_shape|expected scalar type|"
    r"for argument #\d|out of range in self|greater than actual input size|Output size is too small|"
    r"input\.size\(-1\) must be equal|Expected \dD"
)
"""What PyTorch says where a tensor's shape or type does not fit a layer."""
_BY_NAME = inspect.Parameter.POSITIONAL_OR_KEYWORD
_TYPES = re.compile(r"dtype|scalar type|type.*should be the same")
ALONE = "Expected more than 1 value per channel when training"


def explained(module: Callable[..., Any], inputs: Any, error: Exception) -> InputsError | None:
    """The error to raise in place of one that a model's forward raised; None where it is the model's own affair.

    Args:
        module: the model.
        inputs: what it was given: a tensor, a mapping of keywords or a sequence of positions.
        error: what it raised.
    """
    if isinstance(error, TypeError):
        return _of_arguments(module, inputs)
    if type(error) not in (RuntimeError, ValueError, IndexError):
        return None
    name, said = type(module).__name__, str(error).strip().split("\n")[0]
    if ALONE in said:
        first = first_tensor(inputs)
        items = "a batch" if first is None else f"a batch of {first.size(0)} item{'s'[: first.size(0) != 1]}"
        return InputsError(
            f"{name} has batch normalization in training mode, which needs more than one value per channel, but got "
            f"{items}: leave a last batch of one item out by drop_last=True (of kdengine.loader or a DataLoader), or "
            "choose another batch size"
        )
    if _UNFIT.search(said) is None:
        return None
    example = f"lambda inputs: inputs.to({_dtype(module)})" if _TYPES.search(said) else "lambda inputs: inputs[:, :5]"
    return InputsError(f"{name} cannot take the inputs that it was given, {_shown(inputs)}: {said}", example)


def _dtype(module: Callable[..., Any]) -> torch.dtype:
    """The precision of a model."""
    floating = (p.dtype for p in module.parameters() if p.is_floating_point()) if isinstance(module, nn.Module) else ()
    return next(iter(floating), torch.float32)


def _of_arguments(module: Callable[..., Any], inputs: Any) -> InputsError | None:
    """What a forward's signature and the inputs say of each other."""
    try:
        signature = inspect.signature(_innermost(module))
    except (TypeError, ValueError):
        return None
    args, kwargs = _arguments(inputs)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = f"the keywords {', '.join(kwargs)}" if kwargs else f"{len(args)} by position"
        return InputsError(
            f"was given other inputs than it takes: {type(module).__name__}.forward takes {signature}, and got {given} "
            f"({error}){_hint(inputs, signature)}",
            _example(signature, inputs),
        )
    return None


def _hint(inputs: Any, signature: inspect.Signature) -> str:
    """What may have been meant by inputs that a forward does not take."""
    if isinstance(inputs, tuple | list) and len(inputs) > 1:
        return (
            ". A list or tuple is given as positions; one that is a single input goes inside another: "
            "Engine(batch=lambda item: kdengine.Batch([images], labels, size=len(images)))"
        )
    weighing = [key for key in weights_among(inputs) if key not in signature.parameters]
    if not weighing:
        return ""
    return (
        f". If {weighing[0]} is how much each item counts in the losses, say so: "
        f"Engine(batch=lambda item: kdengine.Batch(inputs, labels, weights=item[{weighing[0]!r}]))"
    )


def weights_among(inputs: Any) -> list[str]:
    """The keywords of a mapping that are what sample weights are called."""
    return [key for key in inputs if key in WEIGHT_KEYS] if isinstance(inputs, Mapping) else []


def swallowed_weights(module: nn.Module, inputs: Any) -> list[str]:
    """Those of :func:`weights_among` that a forward takes by its ``**kwargs`` alone, and may well ignore."""
    if not (found := weights_among(inputs)):
        return []
    try:
        parameters = inspect.signature(_innermost(module)).parameters
    except (TypeError, ValueError):
        return []
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return [key for key in found if takes_any and key not in parameters]


def _example(signature: inspect.Signature, inputs: Any) -> str:
    """A function that picks, of the inputs, those that a forward takes."""
    if not isinstance(inputs, Mapping):
        return "lambda inputs: inputs[:1]" if isinstance(inputs, tuple | list) else "lambda inputs: (inputs, ...)"
    needed = [
        name
        for name, parameter in signature.parameters.items()
        if name not in inputs and parameter.default is parameter.empty and parameter.kind is _BY_NAME
    ]
    parts = [f"{name!r}: inputs[{name!r}]" for name in inputs if name in signature.parameters]
    return f"lambda inputs: {{{', '.join([*parts, *(f'{name!r}: ...' for name in needed)])}}}"


def _innermost(module: Callable[..., Any]) -> Callable[..., Any]:
    """The forward behind wrappers that take any arguments."""
    if not isinstance(module, nn.Module):
        return module
    for wrapped in ("_orig_mod", "module"):
        inner = getattr(module, wrapped, None)
        if isinstance(inner, nn.Module) and "*" in str(inspect.signature(module.forward)):
            return _innermost(inner)
    return module.forward


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _shown(inputs: Any) -> str:
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {describe(value)}" for name, value in inputs.items())
    return ", ".join(map(describe, inputs)) if isinstance(inputs, tuple | list) else describe(inputs)
