"""The files beside a plugin file that it imports: found like a script's, and part of its version."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kdengine import _files
from kdengine.api.errors import PluginError

_folders: list[str] = []
"""What was added to ``sys.path``, in order. A spawned worker gets the path, and so finds neighbours as well."""
_imported_here: dict[str, str] = {}
"""The content that neighbours had when a plugin file imported them; what a user has imported is not among them."""


def imported_neighbours(file: Path) -> list[Path]:
    """The files beside a plugin file that it imports by name, and those that they import, in order.

    Only what nothing else provides counts: an installed module of the same name is the one that an import finds.
    """
    found: list[Path] = []
    waiting = [file]
    while waiting:
        for name in _imported(waiting.pop(0)):
            beside = _beside(file.parent, name)
            if beside is not None and beside != file and beside not in found and not _is_elsewhere(name, file.parent):
                found.append(beside)
                waiting.append(beside)
    return found


def version_of(file: Path, neighbours: list[Path]) -> str:
    """Name the content of a plugin file and of its neighbours: ``sha256:`` and the first digits of their hash."""
    content = file.read_bytes()
    if neighbours:
        files = [file for path in neighbours for file in _files_of(path)]
        parts = [hashlib.sha256(part).hexdigest() for part in (content, *(path.read_bytes() for path in files))]
        content = "".join(parts).encode()
    return f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"


def make_importable(file: Path, neighbours: list[Path], plugin: str) -> None:
    """Let a plugin file import its neighbours; anew those that were edited since a plugin file imported them.

    One that has not changed, or that the user's own code imported, stays the one module that it is.

    Their folder comes last on ``sys.path``, so that it hides nothing.

    Raises:
        PluginError: a neighbour has the name of another plugin file's neighbour, which an import would find.
    """
    if not neighbours:
        return
    folder = str(file.parent)
    for path in neighbours:
        name = _module_name(path)
        other = _origin(name)
        if other is not None and other != path and any(other.is_relative_to(known) for known in _folders):
            raise PluginError(
                f"plugin file {str(file)!r} imports its neighbour {path.name}, but {str(other)!r} of another plugin "
                "has that name and is found first; rename one of them",
                plugin=plugin,
            )
        content = _content_of(path)
        if _imported_here.get(name, content) != content and other == path:
            for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[loaded]
        if name not in sys.modules:
            _imported_here[name] = content
            for part in _files_of(path):
                _forget_bytecode(part)
    if folder not in sys.path:
        sys.path.append(folder)
        _folders.append(folder)
    importlib.invalidate_caches()


def _files_of(path: Path) -> list[Path]:
    """The file of a module, or all those of a package."""
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def _content_of(path: Path) -> str:
    """A hash of a module's source."""
    state = hashlib.sha256()
    for part in _files_of(path):
        state.update(hashlib.sha256(part.read_bytes()).digest())
    return state.hexdigest()


def _forget_bytecode(path: Path) -> None:
    """Remove the compiled form of a file.

    Python takes it for that of a file of the same size that was edited within the same second.
    """
    with suppress(OSError, NotImplementedError):
        _files.remove(Path(importlib.util.cache_from_source(str(path))))


def _imported(file: Path) -> Iterator[str]:
    """The top-level names that a file imports; none of one that is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def _beside(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}.py", folder / name / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _module_name(path: Path) -> str:
    return path.parent.name if path.name == "__init__.py" else path.stem


def _origin(name: str) -> Path | None:
    """The file from which an import of a name comes, or would come; None where there is none."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return Path(file).resolve() if file else None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None


def _is_elsewhere(name: str, folder: Path) -> bool:
    """Whether an import of a name finds something that is no plugin file's neighbour."""
    if name in sys.builtin_module_names:
        return True
    origin = _origin(name)
    if origin is None:
        return name in sys.modules
    return not any(origin.is_relative_to(known) for known in (str(folder), *_folders))
