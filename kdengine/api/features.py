"""How a loss names features: paths of modules, with wildcards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import Tensor

from kdengine.api.errors import ConfigurationError

INPUT = ":input"
"""Behind a module's path: what goes into the module rather than what comes out of it."""


def expand(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """The paths that patterns name, each once: in the order of the patterns, and of ``known`` within a pattern.

    Args:
        patterns: paths such as ``layer3`` or ``layer3:input``, or shell patterns such as ``layer*``, where ``*`` does
            not cross a dot. The empty path is the model itself, which no pattern names.
        known: the paths that there are, without ``:input``.

    Raises:
        ConfigurationError: a pattern names nothing; it lists the nearest known paths.

    Example:
        >>> expand(["layer?", "head:input"], ["", "layer1", "layer1.conv", "layer2", "head"])
        ['layer1', 'layer2', 'head:input']
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        path, end = (pattern.removesuffix(INPUT), INPUT) if pattern.endswith(INPUT) else (pattern, "")
        matching = [path] if path in known else [name for name in known if _matches(name, path)]
        if not matching:
            raise ConfigurationError(f"there is no module {path!r}; {_suggest(path, known)}")
        found.update(dict.fromkeys(name + end for name in matching))
    return list(found)


def resolve(features: Mapping[str, Tensor], patterns: Iterable[str]) -> list[str]:
    """The names of the features that patterns name, in the order of :func:`expand`.

    Args:
        features: those of an :class:`~kdengine.api.Output`, by path, in the order of the model's modules.
        patterns: as a loss declared them in its needs.

    Raises:
        ConfigurationError: a pattern names nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern in features:
            found[pattern] = None
            continue
        inputs = pattern.endswith(INPUT)
        known = [name.removesuffix(INPUT) for name in features if name.endswith(INPUT) is inputs]
        matching = [name for name in known if _matches(name, pattern.removesuffix(INPUT))]
        if not matching:
            there = ", ".join(map(repr, features)) or "none"
            raise ConfigurationError(f"no feature {pattern!r} arrived; there are {there}")
        found.update(dict.fromkeys(name + INPUT * inputs for name in matching))
    return list(found)


def select(features: Mapping[str, Tensor], patterns: Iterable[str]) -> list[Tensor]:
    """The features that patterns name; see :func:`resolve`."""
    return [features[name] for name in resolve(features, patterns)]


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return bool(name) and len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _suggest(path: str, known: Sequence[str]) -> str:
    """Up to three paths that look alike, or else the modules at the top."""
    close = get_close_matches(path, filter(None, known), n=3)
    if not close:
        top = ", ".join(repr(name) for name in known if name and "." not in name) or "none"
        return f"the modules at the top are {top}"
    *others, last = map(repr, close)
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"
