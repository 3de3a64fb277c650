"""Plugins in a single file, imported as submodules of this one.

A spawned worker unpickles a plugin's data set by importing the module that its class names. This module is
therefore a package without a directory: importing ``kdengine.host.files.plugin_mine`` finds the file through an
environment variable, which the worker inherits.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from kdengine._interrupts import Terminated
from kdengine._paths import expanded
from kdengine.api.errors import ConfigurationError, PluginError, nearest
from kdengine.host import neighbours
from kdengine.host.plugin import Plugin, describe_failure

__path__: list[str] = []

_TABLE = "_KDENGINE_PLUGIN_FILES"


def load_file(path: Path) -> tuple[ModuleType, str]:
    """Import a plugin file; one that has changed since the last time is imported anew, with its neighbours.

    Returns:
        the module and its version, ``sha256:`` and the first digits of the hash of the file and its neighbours.

    Raises:
        ConfigurationError: there is no such file.
        PluginError: it cannot be imported; a syntax error is shown with its line.
    """
    file = find_file(path)
    beside = neighbours.imported_neighbours(file)
    name = f"{__name__}.{register(file)}"
    version = neighbours.version_of(file, beside)
    module = sys.modules.get(name)
    if module is None or module.__dict__.get("kdengine_file_version") != version:
        sys.modules.pop(name, None)
        neighbours.make_importable(file, beside, path.stem)
        module = import_file(name, path)
        module.__dict__["kdengine_file_version"] = version
    return module, version


def find_file(path: Path) -> Path:
    """The plugin file of a path, with its links followed.

    Raises:
        ConfigurationError: there is none.
    """
    file = expanded(path).resolve()
    if file.is_dir():
        inside = sorted(item.name for item in file.glob("*.py"))
        named = f"name a file in it ({', '.join(inside[:5])})" if inside else "it holds no Python file"
        raise ConfigurationError(f"plugin file {str(path)!r} is a folder: {named}, or give the module's dotted name")
    if not file.is_file():
        siblings = sorted(item.name for item in file.parent.glob("*.py")) if file.parent.is_dir() else []
        hint = f"; {nearest(file.name, siblings)}" if siblings else ""
        raise ConfigurationError(f"plugin file {str(path)!r} does not exist in {str(Path.cwd())!r}{hint}")
    return file


def import_file(name: str, path: Path) -> ModuleType:
    """Import a registered file, with failures attributed to it."""
    plugin = Plugin(path.stem, "file", str(path))
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        where = f" in {error.filename}, line {error.lineno}" if error.lineno else ""
        raise PluginError(f"{plugin.title} has a syntax error{where}: {error.msg}", plugin=plugin.name) from error
    except Terminated:  # a signal, which is a SystemExit as well
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{plugin.title} cannot be imported: {describe_failure(error)}{explain_relative(error)}",
            plugin=plugin.name,
        ) from error


def explain_relative(error: BaseException) -> str:
    """What to write where a file imports its neighbour as if it were in a package, or nothing."""
    missing = getattr(error, "name", None) or ""
    relative = isinstance(error, ImportError) and (missing == __name__ or missing.startswith(f"{__name__}."))
    return "; a plugin file is in no package: import its neighbour without the leading dot" if relative else ""


def register(file: Path) -> str:
    """Give a file a module name of its own: its stem, unless another file has it."""
    table = read_table()
    stem = "plugin_" + file.stem.replace(".", "_")  # prefixed: an import sets the name on this module
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    name = stem if table.get(stem, str(file)) == str(file) else f"{stem}_{digest}"
    os.environ[_TABLE] = json.dumps(table | {name: str(file)})
    return name


def read_table() -> dict[str, str]:
    """Path of each registered file by module name."""
    table: dict[str, str] = json.loads(os.environ.get(_TABLE, "{}"))
    return table


class FileLoader(SourceFileLoader):
    """Compiles the source each time: cached bytecode goes by whole seconds and would hide a quick edit."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the file as it is now."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class FileFinder(MetaPathFinder):
    """Finds the submodules of this module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a registered file, or None for anything else."""
        parent, _, name = fullname.rpartition(".")
        file = read_table().get(name) if parent == __name__ else None
        return None if file is None else spec_from_file_location(fullname, file, loader=FileLoader(fullname, file))


sys.meta_path.append(FileFinder())
