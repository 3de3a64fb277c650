"""What is checked before a plugin is registered: every problem of a plugin is found at once."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

from kdengine._version import __version__
from kdengine.api.errors import PluginError, nearest
from kdengine.api.hooks import CALLBACKS, HOOK_VERSION, PASSES, PRIORITY
from kdengine.host.held import find_uncalled
from kdengine.host.markers import FUNCTIONS, HOOKS, MARKER, marker
from kdengine.host.plugin import Plugin


def validate(plugin: Plugin) -> None:
    """Check an imported plugin against the hooks.

    Raises:
        PluginError: with all problems, one per line.
    """
    problems = list(find_problems(plugin))
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise PluginError(f"{plugin.title} cannot be used:{lines}", plugin=plugin.name)


def find_problems(plugin: Plugin) -> Iterator[str]:
    """Each problem of an imported plugin in one sentence."""
    target = plugin.target
    if isinstance(target, type):
        yield f"it is a class, whose hooks would have no self; give an instance: {target.__name__}()"
        return
    version = getattr(target, "kdengine_hook_version", None)
    yield from check_version(plugin, version)
    if type(version) is int and version != HOOK_VERSION:
        return  # its hooks are those of another version: judging them by ours would mislead
    for name in dir(target):
        yield from check_attribute(target, name)
    yield from check_passes(getattr(target, PASSES, ()))
    if plugin.acting:
        yield from find_uncalled(target)
    for there, missing in (("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")):
        if callable(getattr(target, there, None)) and not callable(getattr(target, missing, None)):
            yield f"it has {there}, but no {missing}; a checkpoint needs both"


def check_version(plugin: Plugin, version: object) -> Iterator[str]:
    """Compare the hook version that a plugin declares with this kdengine's."""
    if version is None:
        place = "module" if isinstance(plugin.target, types.ModuleType) else "class"
        yield f"kdengine_hook_version is missing; add this line to the {place}: kdengine_hook_version = {HOOK_VERSION}"
    elif type(version) is not int:
        yield f"kdengine_hook_version is {version!r}; expected a whole number: kdengine_hook_version = {HOOK_VERSION}"
    elif version > HOOK_VERSION:
        yield (
            f"it is written for hook version {version}, but kdengine {__version__} has version {HOOK_VERSION}; "
            "upgrade kdengine: pip install -U kdengine"
        )
    elif version < HOOK_VERSION:
        upgrade = f"pip install -U {plugin.distribution}" if plugin.distribution else "port it to the present hooks"
        yield (
            f"it is written for hook version {version}, but kdengine {__version__} has version {HOOK_VERSION}; "
            f"upgrade the plugin: {upgrade}"
        )


def check_passes(passes: object) -> Iterator[str]:
    """What a plugin lets through must be classes of exceptions, or no exception could be compared with it."""
    for kind in passes if isinstance(passes, tuple) else (passes,):
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            yield f"{PASSES} holds {kind!r}; expected a class of exceptions, or a tuple of them"


def check_attribute(target: object, name: str) -> Iterator[str]:
    """The problems of one attribute; properties and other descriptors are not evaluated."""
    value = inspect.getattr_static(target, name, None)
    options = marker(value)
    if options is None:
        yield from check_unmarked(name, value)
    elif name not in HOOKS:
        yield f"{name} is no hook of kdengine; {nearest(name, HOOKS)}"
    elif not isinstance(value, FUNCTIONS):
        yield f"{name} is a {type(value).__name__}; a hook must be a function or a method"
    elif getattr(getattr(value, "__func__", value), MARKER, None) is None:
        yield f"{name} has @{type(value).__name__} below @kdengine.hookimpl; write it above"
    else:
        yield from check_options(name, options, priority(target, name))
        yield from check_function(name, getattr(target, name))


def check_unmarked(name: str, value: object) -> Iterator[str]:
    """A function that was meant to be a hook and would never be called."""
    if not callable(value) and not isinstance(value, FUNCTIONS):
        return
    if name in HOOKS:
        yield f"{name} has a hook's name but is not marked; add @kdengine.hookimpl"
    elif name.startswith("kdengine_on_"):
        yield f"{name} is no hook of kdengine; {nearest(name, HOOKS)}"


def check_options(name: str, options: dict[str, Any], order: object) -> Iterator[str]:
    """Options of pluggy that would make the order or the result depend on more than (priority, name)."""
    for option in sorted(option for option, value in options.items() if value):
        advice = "; use priority=" if option in ("tryfirst", "trylast") else ""
        advice = advice or "; order implementations by priority= and change values by the hook's return value"
        yield f"{name} uses pluggy's option {option}, which kdengine's hooks do not take{advice}"
    if type(order) is not int:
        yield f"{name} has priority={order!r}; expected a whole number"


def check_function(name: str, function: Any) -> Iterator[str]:
    """The kind and the arguments of an implementation."""
    body = inspect.unwrap(function)
    if inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body):
        yield f"{name} is async, but nobody would await it; write a plain def"
    elif inspect.isgeneratorfunction(body):
        yield f"{name} contains yield, so that calling it runs nothing; write a function that returns"
    if forgot_self(function):
        yield f"{name} is a method without self; write def {name}(self{', context' if name in CALLBACKS else ''})"
        return
    allowed = ("context",) if name in CALLBACKS else ()
    expected = "expected context or nothing" if allowed else "expected no arguments"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            yield f"{name} has the keyword-only argument {parameter.name!r}, which is never passed; {expected}"
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name not in allowed:
            yield f"{name} has the argument {str(parameter).split(':')[0].split('=')[0]!r}; {expected}"


def forgot_self(function: Any) -> bool:
    """Whether a bound method's first argument is missing, or is ``context``, which would get the instance."""
    if not isinstance(function, types.MethodType):
        return False
    names = list(inspect.signature(function.__func__).parameters)
    return not names or names[0] == "context"


def priority(target: object, name: str) -> Any:
    """The priority of a plugin's implementation; a function marked by pluggy's own marker has 0."""
    value = inspect.getattr_static(target, name)
    return getattr(getattr(value, "__func__", value), PRIORITY, 0)
