"""What of a module is the plugin: its own functions, or the object that it names ``plugin``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from kdengine.host.markers import HOOKS, marker

NAME: Final = "plugin"
"""The module-level name under which a file or module holds its plugin, as in ``plugin = Budget(steps=3)``."""


def held(module: object) -> object:
    """Return the object with hooks that a module names ``plugin``, else what was given.

    A module with hooks of its own stays the plugin; that nothing else of it is called is said by :func:`find_uncalled`.
    """
    if not isinstance(module, ModuleType):
        return module
    value = vars(module).get(NAME)
    return value if _is_plugin(value) and not has_hooks(module) else module


def has_hooks(target: object) -> bool:
    """Whether an object has anything that is a hook, or was meant to be one."""
    for name in dir(target):
        if name in HOOKS or name.startswith("kdengine_on_"):
            return True
        if marker(inspect.getattr_static(target, name, None)) is not None:
            return True
    return False


def find_uncalled(module: object) -> Iterator[str]:
    """Hooks inside of a module that would never be called, each with what to write instead."""
    if not isinstance(module, ModuleType):
        return
    own = has_hooks(module)
    value = vars(module).get(NAME)
    if own and _is_plugin(value):
        yield (
            f"it has hooks of its own and an object named {NAME!r} with hooks, of which one would never be called; "
            f"move the functions into the class of {NAME!r}, or name the object otherwise"
        )
    if own:
        return
    if isinstance(value, type) and has_hooks(value):
        yield f"{NAME!r} is a class, whose hooks would have no self; write {NAME} = {value.__name__}()"
        return
    for name, item in list(vars(module).items()):
        if _is_plugin(item):
            yield f"the hooks of {name!r} are never called, as the module has none; write {NAME} = {name}"
            return
    for item in list(vars(module).values()):
        if isinstance(item, type) and item.__module__ == module.__name__ and has_hooks(item):
            yield (
                f"the hooks of class {item.__name__} are never called, as nothing is made of it; "
                f"write {NAME} = {item.__name__}() at the end of the file"
            )


def _is_plugin(value: object) -> bool:
    return value is not None and not isinstance(value, type | ModuleType) and has_hooks(value)
