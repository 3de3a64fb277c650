"""Looking up components by name, importing installed plugins no earlier than one of them may be wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from packaging.utils import canonicalize_name

from kdengine.api.errors import ConfigurationError, KDEngineError, PluginError, nearest
from kdengine.api.hooks import CONTRIBUTIONS
from kdengine.host.component import Component, contributed
from kdengine.host.discovery import DISABLE_AUTOLOAD, Installed
from kdengine.host.plugin import BUILTIN, Plugin
from kdengine.host.registry import Registry

KINDS = tuple(hook.removeprefix("kdengine_") for hook in CONTRIBUTIONS)
"""The kinds of components, one per contribution hook."""

_NO_AUTOLOAD = f"{DISABLE_AUTOLOAD} is set or autoload is off"


class Catalogue:
    """What the plugins of a host offer.

    Attributes:
        broken: why an installed plugin that nobody asked for was left out, by its key.
        used: keys of the plugins whose component was looked up.
    """

    def __init__(
        self,
        registry: Registry,
        installed: Installed,
        *,
        disabled: dict[str, str],
        autoload: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.broken: dict[str, PluginError] = {}
        self.used: set[str] = set()
        self._registry = registry
        self._installed = installed
        self._disabled = disabled
        self._autoload = autoload
        self._warn = warn
        self._offers: dict[tuple[str, str], list[Component]] = {}

    def find(self, kind: str, name: str) -> Component:
        """The component of a qualified or plain name."""
        check_kind(kind)
        owner, colon, plain = name.rpartition(":")
        found = self._qualified(kind, owner, plain) if colon else self._plain(kind, name)
        self.used.add(canonicalize_name(found.plugin))
        return found

    def everything(self, kind: str) -> list[Component]:
        """All components of a kind."""
        check_kind(kind)
        self._import_installed()
        return self._offered(kind, self._all())

    def _qualified(self, kind: str, owner: str, name: str) -> Component:
        """The component of the plugin that was asked by name."""
        if canonicalize_name(owner) == BUILTIN:
            plugins, title = [plugin for plugin in self._all() if plugin.origin == BUILTIN], BUILTIN
        else:
            plugins = [self._ask(owner)]
            title = plugins[0].title
        offered = [component for plugin in plugins for component in self._offers_of(plugin, kind)]
        found = choose(kind, name, offered)
        if found is None:
            known = nearest(name, [component.name for component in offered])
            raise ConfigurationError(f"{title} offers no {name!r} among {kind}; {known}")
        return found

    def _plain(self, kind: str, name: str) -> Component:
        """The only component of that name: of a builtin or an acting plugin, else of an installed one."""
        present = [plugin for plugin in self._all() if plugin.origin == BUILTIN or plugin.acting]
        found = choose(kind, name, self._offered(kind, present))
        if found is None:
            offered = self.everything(kind)
            found = choose(kind, name, offered)
        if found is None:
            known = nearest(name, [component.name for component in offered])
            notes = "".join(f"\n  {note}" for note in self._unsearched())
            raise ConfigurationError(f"no plugin offers {name!r} among {kind}; {known}{notes}")
        return found

    def _all(self) -> list[Plugin]:
        return list(self._registry.plugins.values())

    def _ask(self, name: str) -> Plugin:
        """An imported plugin by name; an installed one is imported, and must work."""
        key = canonicalize_name(name)
        if key in self._registry.plugins:
            return self._registry.plugins[key]
        if key in self._disabled:
            raise ConfigurationError(f"plugin {name!r} is switched off (--no-plugin {self._disabled[key]})")
        if key not in self._installed:
            raise ConfigurationError(self._installed.explain_unknown(name))
        if not self._autoload:
            raise ConfigurationError(f'plugin {name!r} is installed, but {_NO_AUTOLOAD}; name it: plugins = ["{name}"]')
        if key in self.broken:
            raise self.broken[key]
        return self._registry.add(self._installed.load(name))

    def _import_installed(self) -> None:
        """Import every installed plugin that may offer something; a broken one is a warning, once."""
        if not self._autoload:
            return
        for name in self._installed.names():
            key = canonicalize_name(name)
            if key in self._registry.plugins or key in self._disabled or key in self.broken:
                continue
            try:
                self._registry.add(self._installed.load(name))
            except KDEngineError as error:
                self._leave_out(key, name, error)

    def _leave_out(self, key: str, name: str, error: KDEngineError) -> None:
        """Remember and report a broken plugin that nobody asked for."""
        self.broken[key] = error if isinstance(error, PluginError) else PluginError(str(error), plugin=name)
        self._warn(f"an installed plugin is left out: {error}")

    def _offered(self, kind: str, plugins: Iterable[Plugin]) -> list[Component]:
        """What several plugins offer; one that nobody asked for may fail, and is left out then."""
        found: list[Component] = []
        for plugin in plugins:
            if plugin.key in self.broken:
                continue
            try:
                found += self._offers_of(plugin, kind)
            except PluginError as error:
                if plugin.acting or plugin.origin == BUILTIN:
                    raise
                self._leave_out(plugin.key, plugin.name, error)
        return sorted(found, key=lambda component: (component.name, component.plugin != BUILTIN, component.plugin))

    def _offers_of(self, plugin: Plugin, kind: str) -> list[Component]:
        """What one imported plugin offers under a kind; its hook is called once."""
        place = (plugin.key, kind)
        if place not in self._offers:
            chain = self._registry.implementations(f"kdengine_{kind}")
            mine = (item for item in chain if item.plugin.key == plugin.key)
            self._offers[place] = [component for item in mine for component in contributed(item)]
        return self._offers[place]

    def _unsearched(self) -> list[str]:
        """Why a component may exist and yet not be found."""
        notes = [f"not searched, because it is broken: {error}" for error in self.broken.values()]
        notes += [f"not searched, because it is switched off: {name}" for name in self._disabled.values()]
        if not self._autoload:
            notes.append(f"installed plugins were not searched: {_NO_AUTOLOAD}")
        return notes


def check_kind(kind: str) -> None:
    """Refuse a kind that no contribution hook offers."""
    if kind not in KINDS:
        raise ConfigurationError(f"{kind!r} is no kind of component; {nearest(kind, KINDS)}")


def choose(kind: str, name: str, offered: Sequence[Component]) -> Component | None:
    """The one component of a name, or None without one.

    Raises:
        ConfigurationError: there are several; it shows the line that picks each.
    """
    claims = [component for component in offered if component.name == name]
    if len(claims) > 1:
        lines = "".join(f'\n  {claim.origin}: write use = "{claim.qualified}"' for claim in claims)
        raise ConfigurationError(f"{name!r} among {kind} is claimed by {len(claims)} plugins:{lines}")
    return claims[0] if claims else None
