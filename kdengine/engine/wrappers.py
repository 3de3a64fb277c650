"""Names of a model's tensors and class as its owner knows them, whatever has been wrapped around the model since.

``torch.compile(model)`` puts ``_orig_mod.`` into every name, DistributedDataParallel and others ``module.``. What is
written goes by the names without them, and what is read fits a model with or without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn
from torch.optim.swa_utils import AveragedModel

T = TypeVar("T")

_HOLD_MODULE = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
_INNER = ("_orig_mod", "_fsdp_wrapped_module")
"""Names that only a wrapper has: of torch.compile, of the first FSDP."""
WRAPPER_CLASSES = frozenset({"OptimizedModule", "FullyShardedDataParallel", *(kind.__name__ for kind in _HOLD_MODULE)})


def inner(module: nn.Module) -> str | None:
    """The attribute in which a wrapper holds its model; None for a module that is none.

    >>> inner(nn.Linear(1, 1)), inner(AveragedModel(nn.Linear(1, 1)))
    (None, 'module')
    """
    if isinstance(module, _HOLD_MODULE):
        return "module"
    return next((name for name in _INNER if name in module._modules), None)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of all wrappers around it, whose paths and class a user knows."""
    while (name := inner(module)) is not None:
        module = getattr(module, name)
    return module


def class_name(module: nn.Module) -> str:
    """The name of a module's class as its owner knows it: without wrappers, FSDP2's in front of it, or TorchScript's.

    >>> class_name(AveragedModel(nn.Linear(1, 1)))
    'Linear'
    """
    bare = unwrapped(module)
    kind = next(base.__name__ for base in type(bare).__mro__ if "FSDP" not in base.__name__)
    return str(getattr(bare, "original_name", kind))


def plain_state(state: Mapping[str, T], module: nn.Module, path: str = "") -> dict[str, T]:
    """A state dict by the names that the model had before it was wrapped, or any part of it.

    Args:
        state: of ``module``.
        module: the model, perhaps wrapped.
        path: where the module is inside of that whose state it is.
    """
    prefixes = _prefixes(module, path)
    own = {outer + "n_averaged" for outer, part in _wrappers(module, path) if isinstance(part, AveragedModel)}
    return {_plain(name, prefixes): value for name, value in state.items() if name not in own}


def fitted(state: Mapping[str, T], module: nn.Module, path: str = "") -> dict[str, T]:
    """A stored state dict by the names of a model, where both are the same but for wrappers around them then or now.

    Args:
        state: as it was stored; names that the model has not stay as they are.
        module: the model, perhaps wrapped.
        path: where the module is inside of that whose state it is.
    """
    start = f"{path}." if path else ""
    names = [start + name for name in module.state_dict()]
    if set(state) <= set(names):
        return dict(state)
    prefixes = _prefixes(module, path)
    known = {_plain(name, prefixes): name for name in names}
    return {known.get(_without_wrappers(name, known, start), name): value for name, value in state.items()}


def without_marks(state: Mapping[str, T]) -> dict[str, T]:
    """A stored state dict without what only wrappers put into names, as an earlier version wrote it.

    >>> without_marks({"_orig_mod.0.weight": 1, "module.weight": 2})
    {'0.weight': 1, 'module.weight': 2}
    """
    found = {_unmarked(name): value for name, value in state.items()}
    return found if len(found) == len(state) else dict(state)


def _unmarked(name: str) -> str:
    for mark in _INNER:
        name = name.replace(f"{mark}.", "")
    return name


def _without_wrappers(name: str, known: Mapping[str, Any], start: str) -> str:
    """A stored name as the model knows it, as far as it does."""
    inside = _unmarked(name.removeprefix(start))
    forms = (inside, inside.removeprefix("module."), inside.replace("module.", ""))
    return next((start + form for form in forms if start + form in known), name)


def _wrappers(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    return [
        (f"{name}." if name else "", part)
        for name, part in module.named_modules(prefix=path, remove_duplicate=False)
        if inner(part) is not None
    ]


def _prefixes(module: nn.Module, path: str) -> list[tuple[str, str]]:
    """What names inside of each wrapper begin with, and what they do without it; the innermost first."""
    found = [(f"{outer}{inner(part)}.", outer) for outer, part in _wrappers(module, path)]
    return sorted(found, key=lambda pair: -len(pair[0]))


def _plain(name: str, prefixes: list[tuple[str, str]]) -> str:
    for wrapped, outer in prefixes:
        if name.startswith(wrapped):
            name = outer + name[len(wrapped) :]
    return name
