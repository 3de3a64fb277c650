"""The plugins that are imported: pluggy registers them, and gives each hook's implementations in order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pluggy

from kdengine.api.errors import ConfigurationError
from kdengine.api.hooks import PROJECT, HookSpecs
from kdengine.host.markers import HOOKS, marker
from kdengine.host.plugin import Plugin
from kdengine.host.validation import priority, validate


@dataclass(frozen=True, slots=True)
class Implementation:
    """One plugin's function for one hook."""

    plugin: Plugin
    hook: str
    function: Callable[..., Any]
    priority: int
    takes_context: bool


class Manager(pluggy.PluginManager):
    """Looks at functions with a hook's name only: pluggy before 1.7 evaluates a plugin's properties to find hooks."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        """The options of a hook's implementation, or None for any other attribute."""
        static = inspect.getattr_static(plugin, name, None) if name in HOOKS else None
        return None if marker(static) is None else super().parse_hookimpl_opts(plugin, name)


class Registry:
    """Every imported plugin of a host, by key."""

    def __init__(self) -> None:
        self.plugins: dict[str, Plugin] = {}
        self._manager = Manager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)

    def add(self, plugin: Plugin) -> Plugin:
        """Validate and register an imported plugin.

        Raises:
            ConfigurationError: the name or the object is already there.
            PluginError: its hooks are not valid.
        """
        for other in self.plugins.values():
            if other.target is plugin.target:
                raise ConfigurationError(f"{plugin.title} is already there as {other.title}; give it once")
        if plugin.key in self.plugins:
            other = self.plugins[plugin.key]
            raise ConfigurationError(
                f"two plugins are named {plugin.name!r}: {other.title} and {plugin.title}; "
                "set kdengine_name in one of them, or rename it"
            )
        validate(plugin)
        try:
            self._manager.register(plugin.target, name=plugin.key)
        except ValueError as error:  # pluggy compares plugins by ==
            raise ConfigurationError(f"{plugin.title} equals another plugin; give it once") from error
        self.plugins[plugin.key] = plugin
        return plugin

    def implementations(self, hook: str) -> list[Implementation]:
        """A hook's implementations in order of (priority, plugin name)."""
        found = []
        for entry in getattr(self._manager.hook, hook).get_hookimpls():
            plugin = self.plugins[entry.plugin_name]
            order = priority(plugin.target, hook)
            found.append(
                Implementation(plugin, hook, entry.function, order, bool(inspect.signature(entry.function).parameters))
            )
        return sorted(found, key=lambda item: (item.priority, item.plugin.name, item.plugin.key))
