"""A named component that a plugin offers, and how it is loaded."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from kdengine._interrupts import Terminated
from kdengine.api.errors import PluginError
from kdengine.host.plugin import Plugin, describe_failure
from kdengine.host.registry import Implementation

_ADDRESS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_INSTALL = {
    "torchvision": "kdengine[vision]",
    "sklearn": "kdengine[demo]",
    "matplotlib": "kdengine[report]",
    "jinja2": "kdengine[report]",
    "tensorboard": "tensorboard",
}


@dataclass(frozen=True, slots=True)
class Component:
    """What a plugin offers under a name.

    Attributes:
        kind: ``"losses"``, ``"models"`` and so on, as in the contribution hook's name.
        name: the plain name.
        plugin: name of the plugin that offers it.
        distribution: the plugin's distribution, or None.
        version: the plugin's version, or None.
        target: a class or factory, or ``"module:attribute"``.
        origin: the plugin and where it came from, for messages.
    """

    kind: str
    name: str
    plugin: str
    distribution: str | None
    version: str | None
    target: Callable[..., Any] | str
    origin: str

    @property
    def qualified(self) -> str:
        """The name that is this component's alone: ``plugin:name``."""
        return f"{self.plugin}:{self.name}"

    def load(self) -> Callable[..., Any]:
        """The class or factory; a ``"module:attribute"`` is imported.

        Raises:
            PluginError: it cannot be imported; a missing extra of kdengine is named.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            value = reduce(getattr, attribute.split("."), importlib.import_module(module))
        except Terminated:  # a signal, which is a SystemExit as well
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(f"{describe_failure(error)}{advise(error)}") from error
        if not callable(value):
            raise self._failure(f"it is a {type(value).__name__}; expected a class or a function")
        return value

    def _failure(self, reason: str) -> PluginError:
        return PluginError(
            f"{self.origin} offers {self.name!r} among {self.kind}, but {self.target} cannot be loaded: {reason}",
            plugin=self.plugin,
            hook=f"kdengine_{self.kind}",
        )


def advise(error: BaseException) -> str:
    """How to install the optional package whose absence an import error reports, or nothing."""
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    known = isinstance(error, ModuleNotFoundError) and missing in _INSTALL
    return f"; install it: pip install '{_INSTALL[missing]}'" if known else ""


def contributed(implementation: Implementation) -> list[Component]:
    """Call a plugin's contribution hook and check what it returns.

    Raises:
        PluginError: it failed, or returned something else than components by name.
    """
    plugin, hook = implementation.plugin, implementation.hook
    try:
        offered = implementation.function()
        problems = list(find_problems(offered))
    except Terminated:  # a signal, which is a SystemExit as well
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{plugin.title} failed in {hook}: {describe_failure(error)}", plugin=plugin.name, hook=hook
        ) from error
    if problems:
        raise PluginError(f"{plugin.title}: {hook} returned {'; '.join(problems)}", plugin=plugin.name, hook=hook)
    return [build(plugin, hook.removeprefix("kdengine_"), name, target) for name, target in offered.items()]


def build(plugin: Plugin, kind: str, name: str, target: Callable[..., Any] | str) -> Component:
    """One component of a plugin."""
    return Component(kind, name, plugin.name, plugin.distribution, plugin.version, target, plugin.title)


def find_problems(offered: object) -> Iterator[str]:
    """What is wrong with a contribution hook's return value."""
    if not isinstance(offered, Mapping):
        yield f"a {type(offered).__name__}; expected a mapping from names to classes, factories or 'module:attribute'"
        return
    for name, target in offered.items():
        if not isinstance(name, str) or not name or ":" in name:
            yield f"the name {name!r}; expected a non-empty string without ':'"
        elif isinstance(target, str) and not _ADDRESS.fullmatch(target):
            yield f"{target!r} for {name!r}; expected 'module:attribute'"
        elif not isinstance(target, str) and not callable(target):
            yield f"a {type(target).__name__} for {name!r}; expected a class, a factory or 'module:attribute'"
