"""How a loss names features: paths of modules, with wildcards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from kdengine.api.errors import ConfigurationError, nearest

INPUT = ":input"
"""Behind a module's path: what goes into the module rather than what comes out of it."""


def expand(patterns: Iterable[str], known: Sequence[str]) -> list[str]:
    """The paths that patterns name, each once: in the order of the patterns, and of ``known`` within a pattern.

    Args:
        patterns: paths such as ``layer3`` or ``layer3:input``, or shell patterns such as ``layer*``, where ``*`` does
            not cross a dot.
        known: the paths that there are, without ``:input``.

    Raises:
        ConfigurationError: a pattern names nothing; it lists the nearest known path.

    Example:
        >>> expand(["layer?", "head:input"], ["layer1", "layer1.conv", "layer2", "head"])
        ['layer1', 'layer2', 'head:input']
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        path, end = (pattern.removesuffix(INPUT), INPUT) if pattern.endswith(INPUT) else (pattern, "")
        matching = [name for name in known if _matches(name, path)]
        if not matching:
            raise ConfigurationError(f"there is no module {path!r}; {nearest(path, filter(None, known))}")
        found.update(dict.fromkeys(name + end for name in matching))
    return list(found)


def select(features: Mapping[str, Tensor], patterns: Iterable[str]) -> list[Tensor]:
    """The features that patterns name, in the order of :func:`expand`.

    Args:
        features: those of an :class:`~kdengine.api.Output`, by path.
        patterns: as a loss declared them in its needs.

    Raises:
        ConfigurationError: a pattern names nothing.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        inputs = pattern.endswith(INPUT)
        known = [name.removesuffix(INPUT) for name in features if name.endswith(INPUT) is inputs]
        found.update(dict.fromkeys(expand([pattern], known) if known else [pattern]))
    missing = [name for name in found if name not in features]
    if missing:
        there = ", ".join(map(repr, features)) or "none"
        raise ConfigurationError(f"no feature {missing[0]!r} arrived; there are {there}")
    return [features[name] for name in found]


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
