"""Every way from bytes to objects by code, made to raise."""

from __future__ import annotations

import _pickle
import marshal
import pickle
import shelve
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

_IMPORTLIB = "<frozen importlib._bootstrap_external>"
_watching: list[bool] = []


class UnpickledError(BaseException):
    """Something was unpickled; no ``except Exception`` swallows it."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Sees unpicklers in C too, whoever holds a reference to them; a hook stays for the life of the process."""
    if _watching and event == "pickle.find_class":
        raise UnpickledError(f"an unpickler looked for {arguments}")


sys.addaudithook(_audit)


def _forbidden(name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise UnpickledError(f"{name} was called")

    return call


def _forbidden_class(name: str) -> type:
    return type("Forbidden", (), {"__init__": _forbidden(name)})


def _unless_importing(real: Callable[..., Any]) -> Callable[..., Any]:
    def loads(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_code.co_filename != _IMPORTLIB:
            raise UnpickledError("marshal.loads was called")
        return real(*args, **kwargs)

    return loads


@contextmanager
def no_unpickling() -> Iterator[list[str]]:
    """Make whatever could run code out of a file raise; torch's restricted unpickler is allowed.

    Yields:
        the files that ``torch.load(weights_only=True)`` was called for.
    """
    restricted: list[str] = []
    torch_load, numpy_load = torch.load, np.load

    def load(file: Any, *args: Any, weights_only: bool | None = None, **kwargs: Any) -> Any:
        if weights_only is not True:
            raise UnpickledError("torch.load was called without weights_only=True")
        restricted.append(str(file))
        return torch_load(file, *args, weights_only=True, **kwargs)

    def array_load(*args: Any, allow_pickle: bool = False, **kwargs: Any) -> Any:
        if allow_pickle:
            raise UnpickledError("numpy.load was called with allow_pickle=True")
        return numpy_load(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module in (pickle, _pickle):
            for name in ("load", "loads"):
                patch.setattr(module, name, _forbidden(f"{module.__name__}.{name}"))
            patch.setattr(module, "Unpickler", _forbidden_class(f"{module.__name__}.Unpickler"))
        patch.setattr(pickle, "_Unpickler", _forbidden_class("pickle._Unpickler"))
        patch.setattr(marshal, "load", _forbidden("marshal.load"))
        patch.setattr(marshal, "loads", _unless_importing(marshal.loads))
        patch.setattr(shelve, "open", _forbidden("shelve.open"))
        patch.setattr(torch, "load", load)
        patch.setattr(np, "load", array_load)
        _watching.append(True)
        try:
            yield restricted
        finally:
            _watching.pop()
