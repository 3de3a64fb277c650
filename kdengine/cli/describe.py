"""A plugin or a component in words: its docstring, its arguments, a recipe table to paste."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdengine.api import ConfigurationError, KDEngineError
from kdengine.api.errors import nearest
from kdengine.host import KINDS, Component, Host, Plugin
from kdengine.recipe.binder import taken_by_position
from kdengine.recipe.signature import Argument, arguments

POSITIONAL = {"datasets": 1, "optimizers": 1}
"""How many arguments the engine gives by position; of a teacher source it depends on what it wraps."""

SUPPLIED = {
    "losses": ("items",),
    "models": ("classes", "input_shape"),
    "transforms": ("classes", "input_shape"),
    "projectors": ("student_shape", "teacher_shape"),
}
"""Arguments that the engine fills in."""

_SECTION = re.compile(r"^(Args|Attributes|Example|Examples|Raises|References|Returns|Yields):\s*$", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+)(?: \(.*?\))?: (.*(?:\n {8,}.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """A component in words."""

    component: Component
    description: str
    arguments: list[dict[str, Any]]
    table: str
    references: list[str]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        part = self.component
        return {
            "kind": part.kind,
            "name": part.name,
            "qualified": part.qualified,
            "plugin": part.plugin,
            "distribution": part.distribution,
            "version": part.version,
            "description": self.description,
            "references": self.references,
            "arguments": self.arguments,
            "recipe": self.table,
        }

    def text(self) -> str:
        """For a person."""
        part = self.component
        lines = [f"{part.qualified}  ({part.kind}; {part.origin})", "", self.description, ""]
        lines += ["References:", *(f"  {line}" for line in self.references), ""] if self.references else []
        lines += ["Arguments:", *map(argument_line, self.arguments), ""] if self.arguments else ["No arguments.", ""]
        return "\n".join([*lines, "In a recipe:", f"  {self.table}"])


@dataclass(frozen=True)
class ShownPlugin:
    """A plugin in words."""

    plugin: Plugin
    description: str
    offers: dict[str, list[str]]

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        plugin = self.plugin
        return {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "origin": plugin.origin,
            "source": plugin.source,
            "status": status(plugin),
            "description": self.description,
            "offers": self.offers,
        }

    def text(self) -> str:
        """For a person."""
        lines = [f"{self.plugin.title}: {status(self.plugin)}", "", self.description or "It says nothing of itself."]
        lines += ["", "Offers:" if self.offers else "Offers no components."]
        return "\n".join([*lines, *(f"  {kind}: {', '.join(names)}" for kind, names in self.offers.items())])


def status(plugin: Plugin) -> str:
    """Whether a plugin works and acts."""
    if plugin.error is not None:
        return f"broken: {plugin.error}"
    if plugin.disabled:
        return "disabled"
    return "acting" if plugin.acting else "offers components"


def describe(host: Host, name: str) -> list[Shown | ShownPlugin]:
    """Everything of that name: components of any kind, and the plugin.

    Raises:
        ConfigurationError: there is none.
    """
    offered = [component for kind in KINDS for component in host.components(kind)]
    components = [part for part in offered if name in (part.name, part.qualified)]
    plugin = next((plugin for plugin in host.plugins() if plugin.name == name and plugin.origin != "builtin"), None)
    if name == "builtin":
        plugin = next(plugin for plugin in host.plugins() if plugin.origin == "builtin")
    found: list[Shown | ShownPlugin] = [show_component(part) for part in components]
    if plugin is not None:
        found.append(show_plugin(plugin, offered))
    if not found:
        known = [*(part.qualified if ":" in name else part.name for part in offered), *(p.name for p in host.plugins())]
        raise ConfigurationError(f"there is no plugin or component {name!r}; {nearest(name, known)}")
    return found


def show_plugin(plugin: Plugin, offered: list[Component]) -> ShownPlugin:
    """A plugin, with what it offers."""
    offers: dict[str, list[str]] = {}
    for part in offered:
        if part.plugin == plugin.name:
            offers.setdefault(part.kind, []).append(part.name)
    about = inspect.getdoc(plugin.target) or "" if plugin.target is not None else ""
    if plugin.origin == "builtin":
        about = "What comes with kdengine; it is always there."
    return ShownPlugin(plugin, about, offers)


def show_component(part: Component) -> Shown:
    """A component, loaded; one that cannot be loaded says so."""
    try:
        factory = part.load()
        skip = taken_by_position(factory) if part.kind == "teachers" else POSITIONAL.get(part.kind, 0)
        known = arguments(factory, skip=skip)
    except (KDEngineError, ValueError) as error:
        return Shown(part, f"It cannot be loaded: {error}", [], "", [])
    supplied = SUPPLIED.get(part.kind, ())
    lines = argument_docs(factory)
    rows = [argument_row(argument, lines, supplied=name in supplied) for name, argument in known.items()]
    return Shown(part, description(factory), rows, recipe_table(part, known, supplied), references(factory))


def argument_row(argument: Argument, lines: dict[str, str], *, supplied: bool) -> dict[str, Any]:
    """An argument's name, type, default and documentation."""
    row: dict[str, Any] = {"name": argument.name, "type": argument.type_name, "required": argument.required}
    if not argument.required:
        row["default"] = argument.default
    if supplied:
        row["required"], row["supplied"] = False, True
    return {**row, "doc": lines.get(argument.name, "")}


def argument_line(row: dict[str, Any]) -> str:
    """An argument for a person."""
    default = "required" if row["required"] else f"default {row['default']!r}" if "default" in row else ""
    if row.get("supplied"):
        default = "filled in by kdengine"
    about = f"\n      {row['doc']}" if row["doc"] else ""
    return f"  {row['name']}: {row['type']}, {default}{about}"


def description(factory: Callable[..., Any]) -> str:
    """The docstring up to its first section; the formula is part of it."""
    text = own_doc(factory)
    section = _SECTION.search(text)
    return (text[: section.start()] if section else text).strip() or "It has no docstring."


def argument_docs(factory: Callable[..., Any]) -> dict[str, str]:
    """The lines of a Google-style ``Args:`` section by argument."""
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall(sections(factory).get("Args", ""))}


def references(factory: Callable[..., Any]) -> list[str]:
    """The papers of a Google-style ``References:`` section, one for each of its paragraphs."""
    text = inspect.cleandoc(sections(factory).get("References", ""))
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def sections(factory: Callable[..., Any]) -> dict[str, str]:
    """The sections of a Google-style docstring by title."""
    parts = _SECTION.split(own_doc(factory))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def own_doc(factory: Callable[..., Any]) -> str:
    """The docstring of the thing itself, not one that it inherits from its kind's contract."""
    return inspect.cleandoc(factory.__doc__) if factory.__doc__ else ""


def recipe_table(part: Component, known: dict[str, Argument], supplied: tuple[str, ...]) -> str:
    """A line of a recipe that uses the component with its defaults."""
    given = {
        name: placeholder(argument)
        for name, argument in known.items()
        if name not in supplied and (argument.required or toml(argument.default) is not None)
    }
    use = {"use": toml(part.name)}
    places = {
        "losses": f"losses.{part.name} = {inline({'weight': '1.0', **given})}",
        "models": f"student = {inline({**use, **given})}",
        "datasets": f"data = {inline({**use, **given})}",
        "optimizers": f"optimizer = {inline({**use, **given})}",
        "metrics": f"evaluate = {{ metrics = [{toml(part.name)}] }}",
        "schedules": f"losses.kd = {{ weight = {inline({'schedule': toml(part.name), **given})} }}",
        "loggers": f"loggers = [{inline({**use, **given})}]",
        "teachers": f"teacher.source = {inline({**use, **given})}",
        "projectors": f"losses.hint = {{ projector = {toml(part.name)} }}",
    }
    if part.kind == "transforms" and set(supplied) & set(known):
        return f"batch_transforms.{part.name} = {inline(given)}"
    return places.get(part.kind, f"data.transforms = [{inline({**use, **given})}]")


def placeholder(argument: Argument) -> str:
    """The default as TOML, or what must be filled in."""
    return f"... ({argument.type_name})" if argument.required else toml(argument.default) or ""


def inline(values: Mapping[str, str | None]) -> str:
    """An inline table."""
    inner = ", ".join(f"{key} = {value}" for key, value in values.items() if value is not None)
    return f"{{ {inner} }}" if inner else "{}"


def toml(value: Any) -> str | None:
    """A plain value as TOML; None for what TOML cannot say."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        import json

        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        items = [toml(item) for item in value]
        return None if None in items else f"[{', '.join(item for item in items if item is not None)}]"
    return None
