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

from kdengine.api.errors import ConfigurationError, PluginError, nearest
from kdengine.host.plugin import Plugin

__path__: list[str] = []

_TABLE = "_KDENGINE_PLUGIN_FILES"


def load_file(path: Path) -> tuple[ModuleType, str]:
    """Import a plugin file; one that has changed since the last time is imported anew.

    Returns:
        the module and its version, ``sha256:`` and the first digits of the file's hash.

    Raises:
        ConfigurationError: there is no such file.
        PluginError: it cannot be imported; a syntax error is shown with its line.
    """
    file = path.expanduser().resolve()
    if not file.is_file():
        siblings = sorted(item.name for item in file.parent.glob("*.py")) if file.parent.is_dir() else []
        hint = f"; {nearest(file.name, siblings)}" if siblings else ""
        raise ConfigurationError(f"plugin file {str(path)!r} does not exist in {str(Path.cwd())!r}{hint}")
    name = f"{__name__}.{register(file)}"
    version = "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    module = sys.modules.get(name)
    if module is None or module.__dict__.get("kdengine_file_version") != version:
        sys.modules.pop(name, None)
        module = import_file(name, path)
        module.__dict__["kdengine_file_version"] = version
    return module, version


def import_file(name: str, path: Path) -> ModuleType:
    """Import a registered file, with failures attributed to it."""
    plugin = Plugin(path.stem, "file", str(path))
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise PluginError(
            f"{plugin.title} has a syntax error in {error.filename}, line {error.lineno}: {error.msg}",
            plugin=plugin.name,
        ) from error
    except Exception as error:
        raise PluginError(
            f"{plugin.title} cannot be imported: {type(error).__name__}: {error}", plugin=plugin.name
        ) from error


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
