"""``kdengine plugins new``: a plugin as a package of its own, with tests that pass."""

from __future__ import annotations

import keyword
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from string import Template
from typing import Annotated, Final

import typer
from packaging.utils import canonicalize_name

from kdengine._version import __version__

TEMPLATES = Path(__file__).parent / "templates" / "plugin"
SUFFIX = ".template"


@dataclass(frozen=True)
class Kind:
    """What can be begun; its files are in the folder of its name among the templates.

    Attributes:
        about: the package in one sentence.
        components: the kind of component that it offers; callbacks are none.
        trial: how a run of the demonstration uses it.
    """

    about: str
    components: str | None
    trial: str


KINDS: Final = {
    "loss": Kind("A loss for kdengine.", "losses", "--set losses.$component.weight=0.5"),
    "schedule": Kind(
        "A schedule for kdengine.",
        "schedules",
        """--set 'losses.kd.temperature={ schedule = "$component" }'""",
    ),
    "logger": Kind(
        "A logger for kdengine.", "loggers", """--set 'loggers=[{ use = "console" }, { use = "$component" }]'"""
    ),
    "callback": Kind("Callbacks for kdengine.", None, "--plugin $plugin"),
}
KNOWN: Final = "loss, schedule, logger or callback"

TAKEN: Final = frozenset(
    {"builtin", "conftest", "kdengine", "setup", "test", "tests"}  # for kdengine, pytest and setuptools they mean more
    | {"check_logger", "check_loss", "check_plugin", "check_schedule", "constant", "fit", "tiny_run"}  # in the tests
)
"""Names that no module may have."""

IN_USE: Final = frozenset({"Any", "FileIO", "HookRecorder", "KD", "Mapping", "Path"})
"""Names that the templates import, which no class may have."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_ACRONYMS = {"kd": "KD", "kl": "KL"}


@dataclass(frozen=True)
class Names:
    """What a package and its parts are called.

    Attributes:
        project: the name as it was typed, under which pip knows the package.
        plugin: that name in the normal form of packages, under which recipes know the plugin.
        module: the Python module; the component has the same name.
        title: the class.
    """

    project: str
    plugin: str
    module: str
    title: str

    @classmethod
    def of(cls, name: str, kind: str) -> Names:
        """Derive all names from the package's.

        Raises:
            ValueError: it is no name of a package, or no Python module can have its name.

        Example:
            >>> Names.of("Focal.kd", "loss")
            Names(project='Focal.kd', plugin='focal-kd', module='focal_kd', title='FocalKD')
        """
        if not _NAME.fullmatch(name):
            hint = "; where its folder goes is said by --out" if "/" in name or "\\" in name else ""
            raise ValueError(
                f"{name!r} is no name of a package: expected letters and digits, with '.', '_' or '-' between them, "
                f"such as focal-kd{hint}"
            )
        plugin = canonicalize_name(name)
        parts = plugin.split("-")
        module = "_".join(parts)
        if not module.isidentifier() or keyword.iskeyword(module):
            raise ValueError(
                f"a package {name!r} would have the module {module!r}, which Python cannot import; "
                "choose one that begins with a letter and is no word of the language"
            )
        title = "".join(_ACRONYMS.get(part, part.capitalize()) for part in parts)
        if keyword.iskeyword(title) or title in IN_USE:
            title += kind.capitalize()
        return cls(name, plugin, module, title)


def new(
    name: Annotated[str, typer.Argument(help="The package's name, such as focal-kd.")],
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help=f"What it brings: {KNOWN}. Required.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Its folder; ./NAME when left out.")] = None,
) -> None:
    """Write a plugin as a package of its own, with tests that pass: kdengine plugins new focal-kd --kind loss."""
    from kdengine.api import ConfigurationError
    from kdengine.api.errors import nearest

    if kind not in KINDS:
        close = nearest(kind or "", KINDS)
        hint = "" if close.startswith("known") else f"; {close}"
        raise ConfigurationError(f"--kind {'is missing' if kind is None else repr(kind)}: expected {KNOWN}{hint}")
    try:
        names = Names.of(name, kind)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    for problem in (claimed(names), offered_already(names, kind)):
        if problem is not None:
            raise ConfigurationError(f"{problem}; choose another name")
    folder = Path(name) if out is None else out
    try:
        write(folder, dict(files(names, kind)))
    except FileExistsError as error:
        raise ConfigurationError(
            f"{error.filename} is there already and stays as it is; choose another folder with --out"
        ) from None
    typer.echo(said(folder, names, kind))


def claimed(names: Names) -> str | None:
    """Why no package may bring this module or this plugin: something else has the name."""
    module = names.module
    if module in TAKEN or module in sys.stdlib_module_names:
        return f"a package {names.project!r} would have the module {module!r}, a name that is in use"
    plugins = list(entry_points(group="kdengine"))
    ours = [point for point in plugins if point.dist and canonicalize_name(point.dist.name) == names.plugin]
    for owner in packages_distributions().get(module, ()) if find_spec(module) else ():  # the list takes a while
        if not ours or canonicalize_name(owner) != names.plugin:
            return f"the installed package {owner} has a module {module!r} as well"
    for point in plugins:
        if canonicalize_name(point.name) == names.plugin and point not in ours:
            return f"the installed package {point.dist and point.dist.name} has a plugin {point.name!r} as well"
    return None


def offered_already(names: Names, kind: str) -> str | None:
    """Why recipes could not use the plain name: kdengine has a component of that kind and name."""
    components = KINDS[kind].components
    if components is None:
        return None
    from kdengine.host import Host

    present = {part.name for part in Host(autoload=False).components(components)}
    return f"kdengine has a {kind} {names.module!r} already" if names.module in present else None


def files(names: Names, kind: str) -> Iterator[tuple[str, str]]:
    """Path and text of every file."""
    values = {
        "name": names.project,
        "plugin": names.plugin,
        "module": names.module,
        "component": names.module,
        "class": names.title,
        "entry": names.module if KINDS[kind].components else f"{names.module}:plugin",
        "description": KINDS[kind].about,
        "version": __version__,
    }
    values["usage"] = render(f"{kind}/usage.md", values)
    yield f"{names.module}.py", render(f"{kind}/module.py", values)
    yield f"tests/test_{names.module}.py", render(f"{kind}/test.py", values)
    yield "pyproject.toml", render("pyproject.toml", values)
    yield "README.md", render("README.md", values)


def render(template: str, values: dict[str, str]) -> str:
    """A template with its names filled in."""
    return Template((TEMPLATES / f"{template}{SUFFIX}").read_text(encoding="utf-8")).substitute(values)


def write(folder: Path, texts: dict[str, str]) -> None:
    """Write all files into a folder that is made for them, or nothing.

    Raises:
        FileExistsError: there is something of the folder's name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    try:
        for name, text in texts.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def said(folder: Path, names: Names, kind: str) -> str:
    """What was written, and what to do with it."""
    written = {
        f"{names.module}.py": f"the {kind}, to be changed",
        f"tests/test_{names.module}.py": "its tests, which pass as it stands",
        "pyproject.toml": "name, version, and the entry point by which kdengine finds it",
        "README.md": "how to use it, and how to choose a licence",
    }
    place = str(folder) if folder.is_absolute() else f"./{folder.as_posix()}"  # without ./ pip takes it for a name
    trial = Template(KINDS[kind].trial).substitute(plugin=names.plugin, component=names.module)
    steps = [f"pytest {quote(str(folder))}", f"pip install -e {quote(place)}", f"kdengine run digits {trial}"]
    if KINDS[kind].components:
        steps.insert(2, f"kdengine plugins check {names.plugin}")
    width = max(map(len, written))
    return "\n".join(
        [
            f"wrote {folder}",
            *(f"  {name:<{width}}  {about}" for name, about in written.items()),
            "from here:",
            *(f"  {step}" for step in steps),
        ]
    )
