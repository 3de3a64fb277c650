"""State trees as JSON and a flat table of tensors, exactly and without pickle.

What JSON cannot say is written as an object with one key, a tag that begins with "$":

    {"$tuple": [1, 2]}            {"$set": [...]}              {"$frozenset": [...]}     {"$size": [2, 3]}
    {"$dict": [[key, value], ...]}                  a dict whose keys are not all strings, or look like a tag
    {"$ordereddict": [[key, value], ...]}           {"$counter": [[key, value], ...]}
    {"$defaultdict": ["list", [[key, value], ...]]}
    {"$float": "nan" | "inf" | "-inf"}              {"$int": "0x..."}  an integer beyond 1024 bits
    {"$str": base64 of UTF-8 with surrogates}       {"$bytes": base64}
    {"$tensor": name in the table}                  {"$array": name in the table}
    {"$scalar": ["float64", base64]}                {"$dtype": "bfloat16"}       {"$device": "cuda:0"}

Values come back with their own types. Two references to one tensor are one tensor again; any other object that is
referred to twice comes back as two equal ones. An array is referred to once, for it is copied; references to tensors
are in all at most `kdengine.engine.tensors.MAX_REPEATS` times what the tensors hold, for whoever takes them may copy.
"""

import base64
import enum
import json
import math
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from kdengine._untrusted import shown
from kdengine.engine.shards import is_sharded, local
from kdengine.engine.tensors import check_repeats, dtype_named, held_bytes, spelled_out, why_not_storable

MAX_DEPTH: Final = 64  # a level is up to five frames of Python's thousand
ALLOWED: Final = (
    "None, bool, int, float, str, bytes, list, tuple, set, frozenset, dict, OrderedDict, Counter, tensors, "
    "torch.Size, torch.dtype, torch.device, numpy numbers and arrays of numbers"
)
_FACTORIES: Final[dict[str, type]] = {kind.__name__: kind for kind in (dict, list, set, int, float)}
_SHOWN: Final = 200  # characters of a key in a message; a parameter's name may be long
_PLAIN_BITS: Final = 1024  # Python refuses to read or print decimal integers of more than 4300 digits
_NUMPY_NUMBERS: Final = frozenset(
    {"bool", "float16", "float32", "float64"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


class UnsupportedState(TypeError):  # noqa: N818 - it names the state, as UnsupportedOperation does in io
    """A value that a checkpoint cannot hold; the message says where it is, what it is and what may stand there."""


class MalformedState(ValueError):  # noqa: N818
    """Stored state that `encode` did not make; the message says where it is and what was expected."""


def encode(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a state tree into JSON and tensors.

    Args:
        tree: what ``state_dict()`` returns, up to 64 levels deep.

    Returns:
        An object that ``json.dumps`` writes and ``json.loads`` reads back unchanged, and the tensors by name;
        the names follow the places in the tree. Tensors are detached, not copied.

    Raises:
        UnsupportedState: a value cannot be stored.

    >>> encode({"step": 3, "state": {0: (0.5, torch.ones(1))}})
    ({'step': 3, 'state': {'$dict': [[0, {'$tuple': [0.5, {'$tensor': 'state.0.1'}]}]]}}, {'state.0.1': tensor([1.])})
    >>> encode({"optimizer": {"rule": lambda x: x}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    kdengine.engine.codec.UnsupportedState: optimizer.rule: a lambda cannot be stored in a checkpoint...
    """
    encoder = _Encoder()
    obj = encoder.encode(tree, ())
    try:
        check_repeats(encoder.referenced, held_bytes(map(local, encoder.tensors.values())))
    except ValueError as error:
        raise UnsupportedState(f"the state: {error}") from error
    return obj, encoder.tensors


def decode(obj: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Build the state tree again; nothing but the types above is ever made.

    Args:
        obj: the JSON object that `encode` made.
        tensors: the tensors by name.

    Raises:
        MalformedState: the object was not made by `encode`; a ValueError.

    >>> decode({"state": {"$dict": [[0, {"$tuple": [1, 2]}]]}}, {})
    {'state': {0: (1, 2)}}
    >>> decode({"a": [{"$call": "os.system"}]}, {})
    Traceback (most recent call last):
        ...
    kdengine.engine.codec.MalformedState: a.0: unknown tag '$call'
    """
    return _Decoder(tensors).decode(obj, ())


_Path = tuple[str, ...]


def _place(path: _Path) -> str:
    return ".".join(part if len(part) <= _SHOWN else f"{part[:_SHOWN]}..." for part in path) or "the state"


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.referenced = 0  # bytes
        self._names: dict[int, str] = {}  # by identity; self._seen keeps the objects, so that none is reused
        self._seen: list[Tensor] = []

    def encode(self, value: Any, path: _Path) -> Any:
        if len(path) >= MAX_DEPTH:
            raise UnsupportedState(
                f"{_place(path[:5])}...: deeper than {MAX_DEPTH} levels, or a container that contains itself"
            )
        if isinstance(value, Tensor):
            return {"$tensor": self._tensor(value, path)}
        if isinstance(value, np.generic):
            return self._scalar(value, path)
        encoder = self._ENCODERS.get(type(value))
        if encoder is None:
            raise _unsupported(value, path)
        return encoder(self, value, path)

    def _same(self, value: Any, path: _Path) -> Any:
        return value

    def _int(self, value: int, path: _Path) -> Any:
        return value if value.bit_length() <= _PLAIN_BITS else {"$int": hex(value)}

    def _float(self, value: float, path: _Path) -> Any:
        return value if math.isfinite(value) else {"$float": str(value)}

    def _str(self, value: str, path: _Path) -> Any:
        if _is_utf8(value):
            return value
        return {"$str": _to_base64(value.encode("utf-8", "surrogatepass"))}

    def _bytes(self, value: bytes, path: _Path) -> Any:
        return {"$bytes": _to_base64(value)}

    def _list(self, value: Iterable[Any], path: _Path) -> list[Any]:
        return [self.encode(item, (*path, str(index))) for index, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], path: _Path) -> Any:
        return {"$tuple": self._list(value, path)}

    def _size(self, value: torch.Size, path: _Path) -> Any:
        return {"$size": self._list(value, path)}

    def _set(self, value: Iterable[Any], path: _Path) -> Any:
        items = [self._key(item, (*path, _named(item))) for item in value]
        return {f"${type(value).__name__}": sorted(items, key=json.dumps)}  # the order in memory is chance

    def _dict(self, value: dict[Any, Any], path: _Path) -> Any:
        if all(type(key) is str and not key.startswith("$") and _is_utf8(key) for key in value):
            return {key: self.encode(item, (*path, key)) for key, item in value.items()}
        return {"$dict": self._pairs(value, path)}

    def _mapping(self, value: dict[Any, Any], path: _Path) -> Any:
        return {f"${type(value).__name__.lower()}": self._pairs(value, path)}

    def _defaultdict(self, value: "defaultdict[Any, Any]", path: _Path) -> Any:
        name = getattr(value.default_factory, "__name__", None)
        if name is None or _FACTORIES.get(name) is not value.default_factory:
            raise UnsupportedState(
                f"{_place(path)}: a defaultdict cannot be stored in a checkpoint unless its factory is one of "
                f"{', '.join(_FACTORIES)}; store dict(value) and make the defaultdict when loading"
            )
        return {"$defaultdict": [name, self._pairs(value, path)]}

    def _pairs(self, value: dict[Any, Any], path: _Path) -> list[Any]:
        return [self._pair(key, item, path) for key, item in value.items()]

    def _pair(self, key: Any, item: Any, path: _Path) -> list[Any]:
        inner = (*path, key if type(key) is str else _named(key))
        return [self._key(key, inner), self.encode(item, inner)]

    def _key(self, key: Any, path: _Path) -> Any:
        if isinstance(key, Tensor):
            raise UnsupportedState(f"{_place(path)}: a tensor as a key or in a set cannot be stored; use its name")
        return self.encode(key, path)

    def _dtype(self, value: torch.dtype, path: _Path) -> Any:
        return {"$dtype": str(value).removeprefix("torch.")}

    def _device(self, value: torch.device, path: _Path) -> Any:
        return {"$device": str(value)}

    def _scalar(self, value: "np.generic[Any]", path: _Path) -> Any:
        if value.dtype.name not in _NUMPY_NUMBERS:
            raise _unsupported(value, path)
        return {"$scalar": [value.dtype.name, _to_base64(value.tobytes())]}

    def _array(self, value: "np.ndarray[Any, Any]", path: _Path) -> Any:
        try:
            tensor = torch.from_numpy(np.array(value, order="C"))
        except (TypeError, ValueError) as error:
            raise _unsupported(value, path, f"an array of {value.dtype}") from error
        return {"$array": self._tensor(tensor, path)}

    def _tensor(self, tensor: Tensor, path: _Path) -> str:
        reason = None if is_sharded(tensor) else why_not_storable(tensor)
        if reason is not None:
            raise UnsupportedState(f"{_place(path)}: cannot be stored in a checkpoint: {reason}")
        self.referenced += spelled_out(local(tensor))
        if id(tensor) not in self._names:
            name = _free_name(path, self.tensors)
            self._names[id(tensor)] = name
            self._seen.append(tensor)
            self.tensors[name] = tensor.detach()
        return self._names[id(tensor)]

    _ENCODERS: Final[dict[type, Callable[["_Encoder", Any, _Path], Any]]] = {
        type(None): _same,
        bool: _same,
        int: _int,
        float: _float,
        str: _str,
        bytes: _bytes,
        list: _list,
        tuple: _tuple,
        set: _set,
        frozenset: _set,
        dict: _dict,
        OrderedDict: _mapping,
        Counter: _mapping,
        defaultdict: _defaultdict,
        torch.Size: _size,
        torch.dtype: _dtype,
        torch.device: _device,
        np.ndarray: _array,
    }


def _is_utf8(text: str) -> bool:
    # JSON's escapes would join two lone surrogates into one character.
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _free_name(path: _Path, taken: Mapping[str, Tensor]) -> str:
    place = ".".join(path)
    base = name = "".join(char if char.isprintable() else "?" for char in place) or "tensor"
    count = 1
    while name in taken or name == "__metadata__":  # the file format keeps that name for itself
        count += 1
        name = f"{base}#{count}"
    return name


def _named(key: Any) -> str:
    """A key that is no string, as a part of a tensor's name."""
    try:
        return repr(key)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return shown(key)


def _unsupported(value: Any, path: _Path, what: str | None = None) -> UnsupportedState:
    return UnsupportedState(
        f"{_place(path)}: {what or _describe(value)} cannot be stored in a checkpoint. Allowed: {ALLOWED}. "
        "Store what it is made of, and make it again in load_state_dict()"
    )


def _describe(value: Any) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, types.FunctionType):
        return "a lambda" if value.__name__ == "<lambda>" else f"the function {value.__qualname__}"
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if isinstance(value, enum.Enum):
        return f"a member of the enum {kind}"
    if isinstance(value, torch.Generator):
        return "a torch.Generator (its get_state() can be)"
    base = next((allowed for allowed in _Encoder._ENCODERS if isinstance(value, allowed)), None)
    if base is not None:
        return f"an object of {kind} (a subclass of {base.__name__}, which can be)"
    return f"an object of {kind}"


class _Decoder:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._held = held_bytes(map(local, tensors.values()))
        self._referenced = 0  # bytes
        self._arrays: set[str] = set()

    def decode(self, obj: Any, path: _Path) -> Any:
        if len(path) >= MAX_DEPTH:
            raise MalformedState(f"{_place(path[:5])}...: deeper than {MAX_DEPTH} levels")
        if obj is None or type(obj) in (bool, int, str):
            return obj
        if type(obj) is float and math.isfinite(obj):
            return obj
        if type(obj) is list:
            return self._items(obj, path)
        if type(obj) is dict:
            return self._object(obj, path)
        raise MalformedState(
            f"{_place(path)}: {shown(obj)} of type {type(obj).__name__} does not stand in stored state"
        )

    def _object(self, obj: dict[Any, Any], path: _Path) -> Any:
        tag = next((key for key in obj if type(key) is not str or key.startswith("$")), None)
        if tag is None:
            return {key: self.decode(item, (*path, key)) for key, item in obj.items()}
        decoder = self._DECODERS.get(tag)
        if decoder is None:
            raise MalformedState(f"{_place(path)}: unknown tag {shown(tag)}")
        if len(obj) != 1:
            raise MalformedState(f"{_place(path)}: {tag!r} must be the only key, got {shown(list(obj))}")
        try:
            return decoder(self, obj[tag], path)
        except MalformedState:
            raise
        except (ValueError, TypeError, LookupError, OverflowError, RuntimeError) as error:
            raise MalformedState(f"{_place(path)}: malformed {tag!r}: {error}") from error

    def _items(self, obj: Any, path: _Path) -> list[Any]:
        _expect(list, obj, path)
        return [self.decode(item, (*path, str(index))) for index, item in enumerate(obj)]

    def _tuple(self, obj: Any, path: _Path) -> tuple[Any, ...]:
        return tuple(self._items(obj, path))

    def _set(self, obj: Any, path: _Path) -> set[Any]:
        return {_no_tensor(item, path) for item in self._items(obj, path)}

    def _frozenset(self, obj: Any, path: _Path) -> frozenset[Any]:
        return frozenset(self._set(obj, path))

    def _size(self, obj: Any, path: _Path) -> torch.Size:
        return torch.Size(self._items(obj, path))

    def _dict(self, obj: Any, path: _Path) -> dict[Any, Any]:
        _expect(list, obj, path)
        return dict(self._pair(pair, path) for pair in obj)

    def _ordereddict(self, obj: Any, path: _Path) -> "OrderedDict[Any, Any]":
        return OrderedDict(self._dict(obj, path))

    def _counter(self, obj: Any, path: _Path) -> "Counter[Any]":
        return Counter(self._dict(obj, path))

    def _defaultdict(self, obj: Any, path: _Path) -> "defaultdict[Any, Any]":
        name, pairs = self._two(obj, path)
        return defaultdict(_FACTORIES[name], self._dict(pairs, path))

    def _pair(self, pair: Any, path: _Path) -> tuple[Any, Any]:
        key, item = self._two(pair, path)
        decoded = _no_tensor(self.decode(key, (*path, "key")), path)
        return decoded, self.decode(item, (*path, decoded if type(decoded) is str else shown(decoded)))

    def _two(self, obj: Any, path: _Path) -> tuple[Any, Any]:
        _expect(list, obj, path)
        if len(obj) != 2:
            raise MalformedState(f"{_place(path)}: expected two values, got {len(obj)}")
        return obj[0], obj[1]

    def _float(self, obj: Any, path: _Path) -> float:
        if obj not in ("nan", "inf", "-inf"):
            raise MalformedState(f"{_place(path)}: expected 'nan', 'inf' or '-inf', got {shown(obj)}")
        return float(obj)

    def _int(self, obj: Any, path: _Path) -> int:
        return int(_expect(str, obj, path), 16)

    def _str(self, obj: Any, path: _Path) -> str:
        return _from_base64(obj, path).decode("utf-8", "surrogatepass")

    def _bytes(self, obj: Any, path: _Path) -> bytes:
        return _from_base64(obj, path)

    def _tensor(self, obj: Any, path: _Path) -> Tensor:
        if _expect(str, obj, path) not in self._tensors:
            raise MalformedState(f"{_place(path)}: the tensor {shown(obj)} is missing")
        tensor = self._tensors[obj]
        self._referenced += spelled_out(local(tensor))
        check_repeats(self._referenced, self._held)
        return tensor

    def _array(self, obj: Any, path: _Path) -> "np.ndarray[Any, Any]":
        tensor = self._tensor(obj, path)
        if obj in self._arrays:
            raise MalformedState(f"{_place(path)}: the array {shown(obj)} stands in two places")
        self._arrays.add(obj)
        return tensor.cpu().numpy().copy()

    def _scalar(self, obj: Any, path: _Path) -> "np.generic[Any]":
        name, data = self._two(obj, path)
        raw = _from_base64(data, path)
        if name not in _NUMPY_NUMBERS or len(raw) != np.dtype(name).itemsize:
            raise MalformedState(f"{_place(path)}: {len(raw)} bytes do not make a number of dtype {shown(name)}")
        number: np.generic[Any] = np.frombuffer(raw, np.dtype(name))[0]
        return number

    def _dtype(self, obj: Any, path: _Path) -> torch.dtype:
        return dtype_named(obj)

    def _device(self, obj: Any, path: _Path) -> torch.device:
        return torch.device(_expect(str, obj, path))

    _DECODERS: Final[dict[str, Callable[["_Decoder", Any, _Path], Any]]] = {
        "$array": _array,
        "$bytes": _bytes,
        "$counter": _counter,
        "$defaultdict": _defaultdict,
        "$device": _device,
        "$dict": _dict,
        "$dtype": _dtype,
        "$float": _float,
        "$frozenset": _frozenset,
        "$int": _int,
        "$ordereddict": _ordereddict,
        "$scalar": _scalar,
        "$set": _set,
        "$size": _size,
        "$str": _str,
        "$tensor": _tensor,
        "$tuple": _tuple,
    }


def _expect(kind: type, obj: Any, path: _Path) -> Any:
    if type(obj) is not kind:
        raise MalformedState(f"{_place(path)}: expected a {kind.__name__}, got {type(obj).__name__}")
    return obj


def _no_tensor(key: Any, path: _Path) -> Any:
    if isinstance(key, Tensor):  # which would be found under its identity
        raise MalformedState(f"{_place(path)}: a tensor is no key")
    return key


def _from_base64(obj: Any, path: _Path) -> bytes:
    return base64.b64decode(_expect(str, obj, path), validate=True)
