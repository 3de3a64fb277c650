import importlib
import sys
import textwrap
from pathlib import Path
from types import FunctionType

import pytest

import kdengine
from kdengine.host import Host, builtins

HEAD = "import kdengine\nkdengine_hook_version = 1\n"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No environment variable, no module and no meta data of one test reaches the next."""
    monkeypatch.delenv("KDENGINE_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    monkeypatch.setenv("_KDENGINE_PLUGIN_FILES", "{}")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("fake_", "kdengine.host.files.")):
            del sys.modules[name]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path, such as site-packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def module(site):
    """Write an importable module."""

    def write(name: str, body: str, head: str = HEAD) -> Path:
        path = site.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + textwrap.dedent(body))
        importlib.invalidate_caches()
        return path

    return write


@pytest.fixture
def install(site, module):
    """Install a distribution whose entry point is a module of its own, given by its source."""

    def write(plugin: str, body: str = "", *, version="1.2", distribution=None, target=None, head=HEAD) -> str:
        distribution = distribution or f"kd-{plugin}"
        name = f"fake_{distribution.replace('-', '_')}"
        module(name, body, head)
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[kdengine]\n{plugin} = {target or name}\n")
        importlib.invalidate_caches()
        return name

    return write


@pytest.fixture(autouse=True)
def builtin(monkeypatch, module):
    """One small builtin in place of those that come with kdengine."""
    module("fake_builtin", offers(kd="builtin kd", ce="builtin ce"))
    monkeypatch.setattr(builtins, "BUILTINS", ("fake_builtin",))


@pytest.fixture
def host():
    """Make a host that keeps its warnings in ``host.warned``."""

    def make(*plugins, **options) -> Host:
        warned: list[str] = []
        made = Host(plugins, warn=warned.append, **options)
        made.warned = warned
        return made

    return make


def offers(kind="losses", **components):
    """Source of a contribution: each component is a function that returns the given value."""
    items = ", ".join(f"{name!r}: lambda: {value!r}" for name, value in components.items())
    return f"@kdengine.hookimpl\ndef kdengine_{kind}():\n    return {{{items}}}\n"


def acting(name="probe", /, hook=None, body=None, priority=0, **attributes):
    """An object with one callback."""
    if hook is not None:
        body = body or (lambda self, context: None)
        body = FunctionType(body.__code__, body.__globals__, body.__name__, body.__defaults__, body.__closure__)
        attributes[f"kdengine_on_{hook}"] = kdengine.hookimpl(priority=priority)(body)
    return type("Probe", (), {"kdengine_hook_version": 1, "kdengine_name": name, **attributes})()
