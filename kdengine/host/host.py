"""The host: what a run knows of its plugins."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import ModuleType
from typing import Any

from packaging.utils import canonicalize_name

from kdengine._version import __version__
from kdengine.api.errors import ConfigurationError, nearest, warn
from kdengine.api.hooks import CALLBACKS
from kdengine.host import builtins
from kdengine.host.component import Component
from kdengine.host.discovery import Installed, autoload_enabled, resolve
from kdengine.host.dispatch import PREFIX, Dispatch
from kdengine.host.held import has_hooks
from kdengine.host.lookup import Catalogue
from kdengine.host.plugin import BUILTIN, Plugin
from kdengine.host.registry import Implementation, Registry


def warn_user(message: str) -> None:
    """Warn through Python's own warnings."""
    warn(message)


class Host:
    """Finds plugins, looks up their components and compiles their callbacks.

    An installed plugin only offers components, and is imported when one of them may be wanted. The plugins given
    here act: their callbacks run.

    Args:
        plugins: installed plugins by ``"name"`` or ``"name>=1.2"``, files by path, modules by dotted name, modules,
            and objects with hooks.
        disabled: names of plugins that neither offer nor act.
        autoload: whether installed plugins that are not named offer components; None asks the environment
            variable ``KDENGINE_DISABLE_PLUGIN_AUTOLOAD``.
        warn: receives a line about each plugin that is broken and was not asked for.

    Raises:
        ConfigurationError: a plugin that is named cannot be found, or is named twice.
        PluginError: a plugin that is named is broken.

    Example:
        >>> import kdengine
        >>> class Counter:
        ...     kdengine_hook_version = 1
        ...     @kdengine.hookimpl
        ...     def kdengine_on_step_end(self, context):
        ...         print("step", context)
        >>> host = Host([Counter()], autoload=False)
        >>> host.order()
        ['step_end: counter (0)']
        >>> host.dispatch().step_end(7)
        step 7
        ()
    """

    def __init__(
        self,
        plugins: Iterable[str | object] = (),
        *,
        disabled: Iterable[str] = (),
        autoload: bool | None = None,
        warn: Callable[[str], None] = warn_user,
    ) -> None:
        self._given = plugins = listed(plugins)
        self._warn = warn
        self._autoload = autoload_enabled() if autoload is None else autoload
        self._installed = Installed()
        self._registry = Registry()
        self._disabled: dict[str, str] = {canonicalize_name(name): name for name in disabled}
        self._catalogue = Catalogue(
            self._registry, self._installed, disabled=self._disabled, autoload=self._autoload, warn=warn
        )
        for name in builtins.BUILTINS:
            self._registry.add(load_builtin(name))
        self.acting = tuple(self._act(item) for item in plugins)
        self._check_disabled()

    def __getstate__(self) -> dict[str, Any]:
        """What it was made of, modules by name: a copy finds and imports plugins itself."""
        given = [ByName(item) if isinstance(item, ModuleType) else item for item in self._given]
        return {"given": given, "disabled": list(self._disabled.values()), "autoload": self._autoload}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a host of the same plugins."""
        given = [item.module if isinstance(item, ByName) else item for item in state["given"]]
        Host.__init__(self, given, disabled=state["disabled"], autoload=state["autoload"])

    # What acts

    def _act(self, item: str | object) -> Plugin:
        """Register a plugin whose callbacks will run."""
        if isinstance(item, str) and item in builtins.BUILTINS:
            raise ConfigurationError(f"{item!r} comes with kdengine and is always there; leave it out of plugins")
        plugin = resolve(item, self._installed)
        if plugin.key in self._disabled:
            raise ConfigurationError(f"{plugin.title} is named among the plugins and switched off; do one of the two")
        if plugin.origin != "installed" and plugin.name in self._installed:
            self._warn(f"{plugin.title} hides the installed plugin of that name")
        added = self._registry.add(replace(plugin, acting=True))
        if not has_hooks(added.target):
            self._warn(f"{plugin.title} has no hooks: nothing of it will ever be called")
        return added

    def _check_disabled(self) -> None:
        """Refuse to switch builtins off, and warn about names that nobody has."""
        for key, name in self._disabled.items():
            if key == BUILTIN or name in builtins.BUILTINS:
                raise ConfigurationError(f"{name!r} cannot be switched off: what comes with kdengine stays")
            if key not in self._installed:
                self._warn(f"no plugin is named {name!r}, so none is switched off; {nearest(name, self._names())}")

    def _names(self) -> list[str]:
        return [*self._installed.names(), *(plugin.name for plugin in self.acting)]

    def dispatch(self, *, trace: bool = False) -> Dispatch:
        """Compile the callbacks of the acting plugins; ``trace`` records each one's calls and time."""
        stateful = {
            plugin.name: plugin.target
            for plugin in self.acting
            if callable(getattr(plugin.target, "state_dict", None))
            and callable(getattr(plugin.target, "load_state_dict", None))
        }
        chains = (item for hook in CALLBACKS for item in self._callbacks(hook))
        return Dispatch(chains, stateful, trace=trace)

    def order(self) -> list[str]:
        """Who runs when, a line per callback: ``"step_end: a (0), b (10)"``."""
        lines = []
        for hook in CALLBACKS:
            chain = [f"{item.plugin.name} ({item.priority})" for item in self._callbacks(hook)]
            if chain:
                lines.append(f"{hook.removeprefix(PREFIX)}: {', '.join(chain)}")
        return lines

    def _callbacks(self, hook: str) -> list[Implementation]:
        return [item for item in self._registry.implementations(hook) if item.plugin.acting]

    # What is offered

    def component(self, kind: str, name: str) -> Component:
        """Look up a component by ``"plugin:name"``, or by its plain name.

        A plain name is looked up among builtins and acting plugins, then among installed plugins, which are
        imported only then.

        Raises:
            ConfigurationError: nobody offers it, or several do; the message says what to write.
            PluginError: the plugin that was asked is broken.
        """
        return self._catalogue.find(kind, name)

    def components(self, kind: str) -> list[Component]:
        """Everything offered under a kind; imports every installed plugin, and warns once about a broken one."""
        return self._catalogue.everything(kind)

    # Reports

    def plugins(self) -> list[Plugin]:
        """Everything known: builtins, what is imported, and what is installed, without importing it."""
        known = [self._with_error(plugin) for plugin in self._registry.plugins.values()]
        for plugin in self._installed:
            if plugin.key not in self._registry.plugins:
                off = plugin.key in self._disabled or not self._autoload
                known.append(self._with_error(replace(plugin, disabled=off)))
        return known

    def _with_error(self, plugin: Plugin) -> Plugin:
        error = self._catalogue.broken.get(plugin.key)
        return plugin if error is None else replace(plugin, error=str(error))

    def versions(self) -> dict[str, str]:
        """Version of each plugin that acts or whose component was used, for the record of a run."""
        recorded = [
            plugin
            for key, plugin in self._registry.plugins.items()
            if plugin.origin != BUILTIN and (plugin.acting or key in self._catalogue.used)
        ]
        return {plugin.name: plugin.version or "unknown" for plugin in recorded}


class ByName:
    """A module that travels as its name.

    Args:
        module: importable by its name.

    Raises:
        ConfigurationError: it is not.
    """

    def __init__(self, module: ModuleType) -> None:
        if sys.modules.get(module.__name__) is not module:
            raise ConfigurationError(
                f"the plugin module {module.__name__!r} cannot travel, as it is not imported under its name; give the "
                "path of its file in its place"
            )
        self.name = module.__name__

    @property
    def module(self) -> ModuleType:
        """The module, imported where it is not."""
        return importlib.import_module(self.name)


def listed(plugins: Any) -> list[Any]:
    """Several plugins, or one that was given without a list around it: the letters of a name are no plugins.

    >>> listed("focal>=1.2"), listed(["focal", "mine.py"])
    (['focal>=1.2'], ['focal', 'mine.py'])
    """
    if isinstance(plugins, str | os.PathLike | ModuleType) or not isinstance(plugins, Iterable):
        return [plugins]
    return list(plugins)


def load_builtin(name: str) -> Plugin:
    """Import a plugin that comes with kdengine."""
    return Plugin(BUILTIN, BUILTIN, name, importlib.import_module(name), "kdengine", __version__)
