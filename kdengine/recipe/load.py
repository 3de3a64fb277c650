"""From a file or a shipped name, with overrides, to a validated :class:`Recipe`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from kdengine._paths import expanded
from kdengine._untrusted import TOML_LIMIT, decode, parse_toml, read_bytes
from kdengine.api import ConfigurationError
from kdengine.api.errors import nearest
from kdengine.recipe import escapes
from kdengine.recipe.lines import KEY_PATH, keys_of
from kdengine.recipe.problems import MISSING, Problem, RecipeError
from kdengine.recipe.schema import VERSION, Recipe

_QUOTED_PATH = re.compile(rf"(?=[^=]*[\"'])\s*({KEY_PATH})\s*=")


@dataclass(frozen=True)
class Source:
    """A recipe's text and where it comes from.

    Attributes:
        title: for messages: the path, or the shipped name.
        text: the TOML text.
        folder: against which the recipe's plugin paths are read.
    """

    title: str
    text: str
    folder: Path


def shipped() -> dict[str, str]:
    """The recipes that come with kdengine: name -> text."""
    folder = resources.files("kdengine") / "recipes"
    found = {item.name.removesuffix(".toml"): item for item in folder.iterdir() if item.name.endswith(".toml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def source_at(path: Path) -> Source:
    """The recipe in a file.

    Raises:
        ConfigurationError: it is no text, or no file, or larger than any recipe.
    """
    try:
        return Source(str(path), decode(read_bytes(path, TOML_LIMIT)), path.parent)
    except ValueError as error:
        raise ConfigurationError(f"{path} is no recipe: {error}") from error


def find(recipe: str | Path) -> Source:
    """A recipe by path, or by the name of a shipped one.

    Raises:
        ConfigurationError: there is none.
    """
    path = expanded(recipe)
    if path.is_file():
        return source_at(path)
    known = shipped()
    if str(recipe) in known:
        return Source(str(recipe), known[str(recipe)], Path())
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise ConfigurationError(f"there is no recipe file {path}")
    raise ConfigurationError(
        f"there is no recipe {str(recipe)!r}; {nearest(str(recipe), known)}; or give a file's path"
    )


def load(recipe: str | Path | Source, overrides: Iterable[str] = ()) -> Recipe:
    """Read and validate a recipe's own keys.

    Args:
        recipe: path, shipped name or source.
        overrides: ``key.path=value`` with a TOML value; a bare word is a string.

    Raises:
        RecipeError: every problem at once, with line numbers.
    """
    source = recipe if isinstance(recipe, Source) else find(recipe)
    loaded, problems = read(source, overrides)
    if problems:
        raise RecipeError(source.title, problems, source.text)
    return loaded


def read(source: Source, overrides: Iterable[str] = ()) -> tuple[Recipe, list[Problem]]:
    """A recipe and what is wrong with its own keys, for a plan that goes on to check the components.

    With problems, the recipe lacks the keys that are wrong.

    Raises:
        RecipeError: too little is right to look at the components.
    """
    try:
        tree = parse_toml(source.text)
    except ValueError as error:
        advice = escapes.explain(str(error), source.text)
        told = f"{error}; {advice}" if advice else str(error)
        raise ConfigurationError(f"{source.title} is not valid TOML: {told}") from error
    for override in overrides:
        apply_override(tree, override)
    _check_version(source, tree)
    tree.setdefault("name", Path(source.title).stem)
    escaped = list(escapes.find_escaped(tree))
    try:
        return Recipe.model_validate(tree), escaped
    except ValidationError as error:
        problems = [*_problems(error, tree), *escaped]
        try:
            return _mended(tree, problems), problems
        except ValidationError:
            raise RecipeError(source.title, problems, source.text) from error


def _mended(tree: dict[str, Any], problems: Iterable[Problem]) -> Recipe:
    """The recipe without its wrong keys; epochs, which have no default and nothing to look up, are stood in for."""
    for problem in problems:
        _drop(tree, problem.path)
    tree.setdefault("train", {}).setdefault("epochs", 1)
    teacher = tree.get("teacher")
    if isinstance(teacher, dict) and isinstance(teacher.get("train"), dict):
        teacher["train"].setdefault("epochs", 1)
    return Recipe.model_validate(tree)


def _drop(tree: Any, path: tuple[str, ...]) -> None:
    """Delete a key; of a list that holds something wrong, the whole."""
    for key, deeper in zip(path, [*path[1:], None], strict=True):
        if key not in tree:
            return
        if deeper is None or not isinstance(tree[key], dict):
            del tree[key]
            return
        tree = tree[key]


def _check_version(source: Source, tree: Mapping[str, Any]) -> None:
    version = tree.get("version", MISSING)
    if version is MISSING:
        problem = Problem(("version",), f"a recipe begins with version = {VERSION}")
        raise RecipeError(source.title, [problem], source.text)
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        what = "a newer kdengine (pip install -U kdengine)" if newer else f"version = {VERSION}"
        problem = Problem(("version",), f"this kdengine reads recipes of version {VERSION}; expected {what}", version)
        raise RecipeError(source.title, [problem], source.text)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one ``key.path=value`` in a recipe's tree, in place.

    Raises:
        ConfigurationError: it has no ``=``, or a key on the way is not a table.
    """
    keys, raw = _split_override(override)
    if raw is None or not all(keys):
        raise ConfigurationError(f"--set expects key=value, such as losses.kd.temperature=2; got {override!r}")
    for position, key in enumerate(keys[:-1]):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigurationError(f"--set {override}: {'.'.join(keys[: position + 1])} is no table")
    tree[keys[-1]] = _value(raw.strip())


def _split_override(override: str) -> tuple[list[str], str | None]:
    """The keys and the text of the value; a key in quotes may hold dots, as in TOML."""
    if (quoted := _QUOTED_PATH.match(override)) is not None:
        return list(keys_of(quoted[1])), override[quoted.end() :]
    path, equals, raw = override.partition("=")
    return path.strip().split("."), raw if equals else None


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


_SAID = {
    "missing": "this key is required",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected a string",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected a table",
    "model_type": "expected a table",
    "finite_number": "expected a finite number",
}


def _problems(error: ValidationError, tree: Mapping[str, Any]) -> list[Problem]:
    """A pydantic error as problems, one per key; what the branches of a union say is joined, the deepest key counts."""
    found: dict[tuple[str, ...], Problem] = {}
    for item in error.errors():
        path = _keys_of(item["loc"], tree)
        problem = _problem(path, item)
        if path in found and problem.message not in found[path].message:
            joined = f"{found[path].message} or {problem.message.removeprefix('expected ')}"
            problem = replace(problem, message=joined)
        found[path] = problem
    return [problem for path, problem in found.items() if not any(path == deep[: len(path)] != deep for deep in found)]


def _problem(path: tuple[str, ...], error: Any) -> Problem:
    """One pydantic error, with the nearest known key for an unknown one."""
    if error["type"] == "extra_forbidden":
        return Problem(path, f"unknown key; {nearest(path[-1], _keys_at(path[:-1]))}")
    if error["type"] == "missing":
        return Problem(path, _SAID["missing"])
    return Problem(path, _SAID.get(error["type"]) or _reworded(error["msg"]), error["input"])


def _reworded(message: str) -> str:
    message = message.removeprefix("Value error, ")
    for comparison in ("greater", "less"):
        message = message.replace(f"Input should be {comparison}", f"expected a number {comparison}")
    message = message.replace("Input should be", "expected")
    return message[:1].lower() + message[1:]


def _keys_of(location: Sequence[str | int], tree: Any) -> tuple[str, ...]:
    """The keys of a pydantic location, which also names the branches of unions; the last key may be missing."""
    path = []
    for position, part in enumerate(location):
        if isinstance(tree, dict) and (part in tree or position == len(location) - 1):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]
        else:
            continue
        path.append(str(part))
    return tuple(path)


def _keys_at(path: tuple[str, ...]) -> list[str]:
    """The known keys of the table at a path."""
    model: Any = Recipe
    for key in path:
        if key.isdecimal():  # a place in a list, whose type has been entered
            continue
        field = model.model_fields.get(key)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as TOML: every key with the value that holds."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def differences(stored: Recipe, present: Recipe) -> list[str]:
    """What changed between two recipes, beside what may change when a run is resumed."""
    before, after = (_flat(recipe.model_dump(mode="json")) for recipe in (stored, present))
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return [
        f"{'.'.join(key)} was {before.get(key)!r}, is {after.get(key)!r}"
        for key in changed
        if not any(key[: len(free)] == free for free in Recipe.FLEXIBLE)
    ]


def _flat(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {deep: value for key, item in tree.items() for deep, value in _flat(item, (*path, key)).items()}
