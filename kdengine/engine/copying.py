"""Copies and pickles of an engine: what travels is what it was given, and the models as they are now."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping, Set
from typing import Any, Final, TypeVar

from torch import nn

from kdengine.api import ConfigurationError, TeacherSource
from kdengine.api.copies import copied

E = TypeVar("E")

ARGUMENTS: Final = {
    "source": "teacher",
    "host": "plugins",
    "heads": "output, labels",
    "_to_batch": "batch",
    "_own_inputs": "student_inputs, teacher_inputs",
}
"""The arguments behind attributes that have other names."""


def copied_state(state: Mapping[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    """The attributes of an engine for an independent one.

    Args:
        state: without what belongs to a fit.
        memo: what has been copied already, as for ``copy.deepcopy``.

    Raises:
        ConfigurationError: something that was given cannot be copied.
    """
    made = {}
    for model in _models(state):
        copied(model, memo)  # what else refers to it finds the copy in the memo
    for name, value in state.items():
        try:
            made[name] = copy.deepcopy(value, memo)
        except (TypeError, RuntimeError, AttributeError, pickle.PicklingError) as error:
            raise ConfigurationError(
                f"this engine cannot be copied: {_argument(name)} holds something that cannot ({error}); make a second "
                "engine with one of its own"
            ) from error
    return made


def check_picklable(engine: object, state: Mapping[str, Any]) -> None:
    """Refuse what cannot travel to another process, in words; of models the classes alone are tried.

    Args:
        engine: whose state it is.
        state: without what belongs to a fit.

    Raises:
        ConfigurationError: something that was given cannot be pickled.
    """
    modules = [module for model in _models(state) for module in model.modules()]
    held = [*modules, *(tensor for module in modules for tensor in module.parameters(recurse=False))]
    known = {id(engine), *map(id, held)}
    for name, value in state.items():
        own = [type(module) for module in state["student"].modules()] if name == "student" else value
        try:
            _Trial(known).dump(own)
        except Exception as error:  # pickle raises what it likes, and so does __reduce__
            raise ConfigurationError(
                f"this engine cannot be pickled: {_argument(name)} holds something that cannot ({error}). What travels "
                "to another process is found there by its name: define functions and classes at the top of a module, "
                "in place of lambdas, and open files in the process that writes them"
            ) from error


def packed(engine: object, state: Mapping[str, Any]) -> bytes:
    """The state as bytes.

    ``multiprocessing`` would send the tensors by shared memory, and both processes train the same weights.
    """
    data = io.BytesIO()
    _Packing(engine, data).dump(dict(state))
    return data.getvalue()


def unpacked(kind: type[E], data: bytes) -> E:
    """The engine of a state that :func:`packed` gave."""
    made = kind.__new__(kind)
    made.__dict__.update(_Unpacking(made, io.BytesIO(data)).load())
    return made


class _Packing(pickle.Pickler):
    """Pickles an engine's state, in which a plugin may refer to the engine."""

    def __init__(self, engine: object, file: io.BytesIO) -> None:
        super().__init__(file)
        self._engine = engine

    def persistent_id(self, item: Any) -> str | None:
        """Stand in for the engine."""
        return "engine" if item is self._engine else None


class _Unpacking(pickle.Unpickler):
    """Reads what :class:`_Packing` wrote."""

    def __init__(self, engine: object, file: io.BytesIO) -> None:
        super().__init__(file)
        self._engine = engine

    def persistent_load(self, _: Any) -> object:
        """Put the engine in its place."""
        return self._engine


class _Trial(pickle.Pickler):
    """Pickles into nowhere, and leaves out what is known.

    Args:
        known: ids of models, which are large, and of the engine, to which a part may refer.
    """

    def __init__(self, known: Set[int]) -> None:
        super().__init__(io.BytesIO())
        self._known = known

    def persistent_id(self, item: Any) -> int | None:
        """Stand in for what is known."""
        return id(item) if id(item) in self._known else None


def _models(state: Mapping[str, Any]) -> list[nn.Module]:
    source: TeacherSource | None = state["source"]
    models = [state["student"], *([] if source is None else source.modules()), state["_averaged"]]
    return [model for model in models if model is not None]


def _argument(name: str) -> str:
    return f"Engine({ARGUMENTS.get(name, name.removeprefix('_'))})"
