"""Finding plugins: what is installed, and what a person names or hands over."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points, packages_distributions
from pathlib import Path
from types import ModuleType

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from kdengine._interrupts import Terminated
from kdengine.api.errors import ConfigurationError, PluginError, nearest
from kdengine.api.hooks import PROJECT
from kdengine.host.files import load_file
from kdengine.host.held import held
from kdengine.host.plugin import Plugin, check_name, describe_failure

DISABLE_AUTOLOAD = "KDENGINE_DISABLE_PLUGIN_AUTOLOAD"
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def autoload_enabled() -> bool:
    """Whether installed plugins are considered without being named.

    Raises:
        ConfigurationError: the variable says neither yes nor no.
    """
    said = os.environ.get(DISABLE_AUTOLOAD, "").strip().lower()
    if said not in (*_YES, *_NO):
        known = ", ".join(repr(word) for word in (*_YES, *_NO) if word)
        raise ConfigurationError(f"{DISABLE_AUTOLOAD} must be one of {known}, got {said!r}")
    return said not in _YES


class Installed:
    """The plugins that installed distributions declare; reading their metadata imports nothing."""

    def __init__(self) -> None:
        self._points: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=PROJECT):
            self._points.setdefault(canonicalize_name(point.name), []).append(point)

    def __contains__(self, name: str) -> bool:
        return canonicalize_name(name) in self._points

    def __iter__(self) -> Iterator[Plugin]:
        return (describe_point(point) for points in self._points.values() for point in points)

    def names(self) -> list[str]:
        """The names of all installed plugins, each once."""
        return sorted(points[0].name for points in self._points.values())

    def load(self, name: str) -> Plugin:
        """Import an installed plugin.

        Raises:
            PluginError: it cannot be imported, or two distributions claim its name.
        """
        points = self._points[canonicalize_name(name)]
        plugin = describe_point(points[0])
        if len(points) > 1:
            claims = " and ".join(f"{describe_point(point).title} [{point.value}]" for point in points)
            raise PluginError(f"two distributions install {claims}; uninstall one of them", plugin=plugin.name)
        try:
            check_name(plugin.name, f"the entry point of {plugin.distribution} {plugin.version}")
            return replace(plugin, target=held(points[0].load()))
        except Terminated:  # a signal, which is a SystemExit as well
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{plugin.title} cannot be imported: {describe_failure(error)}", plugin=plugin.name
            ) from error

    def require(self, text: str) -> Plugin:
        """Import the installed plugin that ``name`` or ``name>=1.2`` asks for.

        Raises:
            ConfigurationError: it is not installed, or in a version that does not fit.
            PluginError: it cannot be imported.
        """
        requirement = parse(text)
        if requirement.name not in self:
            raise ConfigurationError(self.explain_unknown(requirement.name))
        found = describe_point(self._points[canonicalize_name(requirement.name)][0])
        try:
            fits = requirement.specifier.contains(found.version or "", prereleases=True)
        except InvalidVersion:
            fits = False
        if requirement.specifier and not fits:
            raise ConfigurationError(
                f"{found.title} is installed, but {text!r} is wanted; "
                f"pip install '{found.distribution}{requirement.specifier}'"
            )
        return self.load(requirement.name)

    def explain_unknown(self, name: str) -> str:
        """What to do about a plugin that is not installed."""
        offered = [
            plugin.name for plugin in self if canonicalize_name(plugin.distribution or "") == canonicalize_name(name)
        ]
        if offered:
            return f"no plugin is named {name!r}; the distribution of that name installs {', '.join(offered)}"
        if (declared := explain_undeclared(name)) is not None:
            return declared
        return (
            f"plugin {name!r} is not installed; {nearest(name, self.names())}. Install it (pip install {name}, or "
            f"the distribution that provides it), or give a file: '{name}.py'"
        )

    def owner(self, module: str) -> Plugin | None:
        """The installed plugin whose entry point is the module of this name, or None."""
        return next((plugin for plugin in self if plugin.source == module), None)


def explain_undeclared(name: str) -> str | None:
    """What is missing from an installed distribution, or importable module, that declares no plugin; None for neither.

    >>> print(explain_undeclared("pluggy"))
    the distribution pluggy ... is installed, but declares no entry point in the group 'kdengine'; ...
    """
    wanted = f'[project.entry-points.{PROJECT}] with a line such as {name} = "module" in its pyproject.toml'
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        if name.isidentifier() and name in packages_distributions():
            return (
                f"no installed distribution declares {name!r} as a plugin, though a module of that name is installed; "
                f"a plugin needs {wanted}"
            )
        return None
    groups = {point.group for point in found.entry_points if point.group != PROJECT and PROJECT in point.group}
    other = f" (there are some in {', '.join(map(repr, sorted(groups)))})" if groups else ""
    return (
        f"the distribution {found.name} {found.version} is installed, but declares no entry point in the group "
        f"{PROJECT!r}{other}; it needs {wanted}, and to be installed again after that"
    )


def describe_point(point: EntryPoint) -> Plugin:
    """The record of an installed plugin that is not imported."""
    name, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
    return Plugin(point.name, "installed", point.value, distribution=name, version=version)


def parse(text: str) -> Requirement:
    """Read ``name`` or ``name>=1.2``."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise ConfigurationError(f"{text!r} names no plugin: {str(error).splitlines()[0]}; {FORMS}") from error
    if requirement.extras or requirement.url or requirement.marker:
        raise ConfigurationError(f"{text!r} names no plugin; {FORMS}")
    return requirement


FORMS = "expected 'name', 'name>=1.2', 'path/to/file.py' or 'package.module'"


def resolve(item: object, installed: Installed) -> Plugin:
    """Turn what a person names or hands over into an imported plugin.

    Raises:
        ConfigurationError: nothing is found under that name, or the item can be no plugin.
        PluginError: it cannot be imported.
    """
    if isinstance(item, str) and not looks_like_path(item):
        requirement = parse(item)
        dotted = "." in requirement.name and requirement.name not in installed
        return resolve_dotted(item, installed) if dotted else installed.require(item)
    if isinstance(item, str | Path):
        path = Path(item)
        module, version = load_file(path)
        target = held(module)
        named = getattr(target, "kdengine_name", getattr(module, "kdengine_name", path.stem))
        return Plugin(check_name(named, f"file {str(path)!r}"), "file", str(path), target, version=version)
    return resolve_object(item, installed)


def looks_like_path(text: str) -> bool:
    """Whether a string names a file rather than a plugin or module."""
    return text.endswith(".py") or "/" in text or "\\" in text


def resolve_dotted(text: str, installed: Installed) -> Plugin:
    """Import the module of a dotted name."""
    requirement = parse(text)
    if requirement.specifier:
        raise ConfigurationError(f"{text!r}: only an installed plugin has a version to compare; {FORMS}")
    try:
        return resolve_object(importlib.import_module(text), installed)
    except ModuleNotFoundError as error:
        if error.name and (text == error.name or text.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"no installed plugin and no module is named {text!r} ({error}); {nearest(text, installed.names())}"
            ) from error
        raise PluginError(f"plugin {text!r} cannot be imported: {error}", plugin=text) from error
    except (ConfigurationError, PluginError):
        raise
    except Terminated:  # a signal, which is a SystemExit as well
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"plugin {text!r} cannot be imported: {describe_failure(error)}", plugin=text) from error


def resolve_object(target: object, installed: Installed) -> Plugin:
    """Make a record of a module or an instance."""
    if isinstance(target, type):
        raise ConfigurationError(
            f"plugin {target.__name__} is a class; give an instance of it: plugins=[{target.__name__}()]"
        )
    if target is None or isinstance(target, int | float | bytes | list | tuple | dict | set):
        raise ConfigurationError(f"a plugin cannot be {target!r}; {FORMS}, a module or an object with hooks")
    version = getattr(target, "__version__", None)
    if isinstance(target, ModuleType):
        known = installed.owner(target.__name__)
        if known is not None:
            return replace(known, target=held(target))
        source, default = target.__name__, target.__name__.rpartition(".")[2]
    else:
        kind = type(target)
        source, default = f"{kind.__module__}.{kind.__qualname__}", kind.__name__.lower()
    plugin = held(target)
    name = check_name(getattr(plugin, "kdengine_name", getattr(target, "kdengine_name", default)), source)
    return Plugin(name, "object", source, plugin, version=version if isinstance(version, str) else None)
