"""Whose code raised an exception: the line of a plugin, or of another file that is no library."""

from __future__ import annotations

import linecache
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

_PACKAGE: Final = Path(__file__).parent.parent
_LIBRARIES: Final = ("site-packages", "dist-packages")
_FROM_WORKER: Final = re.compile(r"Caught (?P<kind>\w+) in .*\.\nOriginal Traceback \(most recent call last\):\n")
_FRAME: Final = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """A line of code that is not kdengine's, nor a library's.

    Attributes:
        file: its file.
        line: its number.
        function: the function that it is in.
        plugin: the plugin that it belongs to, as messages name it; None for any other file.
    """

    file: str
    line: int
    function: str
    plugin: str | None

    def __str__(self) -> str:
        code = linecache.getline(self.file, self.line).strip()
        owner = f" of {self.plugin}" if self.plugin else ""
        return f"raised in {self.function}{owner}, {self.file}, line {self.line}" + (f": {code}" if code else "")


def blame(error: BaseException) -> Place | None:
    """Find the innermost line of foreign code that an exception, or what caused it, came through.

    What a data worker raises arrives with its traceback as text.
    """
    for each in reversed(list(_chain(error))):
        places = [*_of_traceback(each.__traceback__), *_of_text(str(each))]
        if places:
            return places[-1]
    return None


def message(error: BaseException) -> tuple[str, str]:
    """The class and the message of an exception; of one from a data worker, those that it had there."""
    text = str(error)
    found = _FROM_WORKER.match(text)
    if found is None:
        return type(error).__name__, text
    lines = text.rstrip().splitlines()
    last = max(place for place, line in enumerate(lines) if line.startswith(" "))
    told = "\n".join(lines[last + 1 :])
    kind, colon, rest = told.partition(": ")
    return (kind.rpartition(".")[2], rest) if colon else (found["kind"], told)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _of_traceback(traceback: TracebackType | None) -> Iterator[Place]:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = traceback.tb_frame.f_globals.get("__name__", "")
        yield from _place(code.co_filename, traceback.tb_lineno, code.co_name, module)
        traceback = traceback.tb_next


def _of_text(text: str) -> Iterator[Place]:
    if _FROM_WORKER.match(text):
        for frame in _FRAME.finditer(text):
            yield from _place(frame["file"], int(frame["line"]), frame["function"], "")


def _place(file: str, line: int, function: str, module: str) -> Iterator[Place]:
    """A line as a place, if it is neither kdengine's nor a library's."""
    if file.startswith("<"):
        return
    plugin = _plugin(file, module)
    if plugin is not None or not _is_library(Path(file)):
        yield Place(file, line, function, plugin)


def _plugin(file: str, module: str) -> str | None:
    from kdengine.host.discovery import Installed
    from kdengine.host.files import read_table

    if str(Path(file).resolve()) in read_table().values():
        return f"plugin {Path(file).stem!r}"
    top = module.partition(".")[0]
    for plugin in Installed():
        package = plugin.source.partition(":")[0].partition(".")[0]
        if package != "kdengine" and (package == top or package in Path(file).parts):
            return plugin.title
    return None


def _is_library(file: Path) -> bool:
    """Whether a file is kdengine's, Python's own or an installed package's."""
    own = (_PACKAGE, Path(sysconfig.get_path("stdlib")))
    return any(file.is_relative_to(folder) for folder in own) or any(part in file.parts for part in _LIBRARIES)
