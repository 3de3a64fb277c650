"""A plugin file imports the files beside it, as a script does; they are part of its version."""

import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from kdengine.api.errors import ConfigurationError, PluginError
from kdengine.host import neighbours

HEAD = "import kdengine\nkdengine_hook_version = 1\n"
OFFER = "@kdengine.hookimpl\ndef kdengine_losses():\n    return {'mine': lambda: VALUE}\n"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """Neither folders on the path nor neighbours of one test reach the next."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(neighbours, "_folders", [])
    monkeypatch.setattr(neighbours, "_imported_here", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("near_"):
            del sys.modules[name]


@pytest.fixture
def plugin(tmp_path):
    def write(imports="from near_one import VALUE", folder="plugins", **files):
        place = tmp_path / folder
        for name, text in {"mine": f"{HEAD}{imports}\n{OFFER}", **files}.items():
            path = place / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(place / "mine.py")

    return write


def value(made):
    return made.component("losses", "mine").load()()


def test_a_neighbour_is_imported(plugin, host):
    assert value(host(plugin(near_one="VALUE = 1"))) == 1


def test_a_neighbour_that_is_a_package_and_one_of_a_neighbour_are_imported(plugin, host):
    files = {"near_pack/__init__": "from near_two import TWO\n", "near_pack/deep": "ONE = 1\n", "near_two": "TWO = 2\n"}
    path = plugin("import near_pack\nfrom near_pack.deep import ONE\nVALUE = (ONE, near_pack.TWO)", **files)
    assert value(host(path)) == (1, 2)


def test_an_edit_of_a_neighbour_is_another_version_and_is_seen(plugin, host):
    first = host(plugin(near_one="VALUE = 1"))
    again = host(plugin(near_one="VALUE = 1"))
    assert again.versions() == first.versions()
    edited = host(plugin(near_one="VALUE = 2"))
    assert value(edited) == 2
    assert edited.versions() != first.versions()


def test_an_edit_within_the_same_second_is_seen(plugin, host):
    host(plugin(near_one="VALUE = 1"))
    path = plugin(near_one="VALUE = 2")
    beside = Path(path).parent / "near_one.py"
    bytecode = Path(importlib.util.cache_from_source(str(beside)))
    if bytecode.exists():  # what Python would take for it: of the same time and size
        os.utime(beside, (int.from_bytes(bytecode.read_bytes()[8:12], "little"),) * 2)
    assert value(host(path)) == 2


def test_a_neighbour_stays_the_one_module_for_every_plugin_file_and_for_the_users_own_code(plugin, host, monkeypatch):
    path = plugin("import near_one\nVALUE = near_one", near_one="class Foo: pass\n")
    monkeypatch.syspath_prepend(str(Path(path).parent))
    own = importlib.import_module("near_one")
    other = Path(path).with_name("second.py")
    other.write_text(Path(path).read_text())
    assert value(host(path)) is value(host(str(other))) is own is sys.modules["near_one"]
    assert isinstance(pickle.loads(pickle.dumps(own.Foo())), own.Foo)


def test_an_edit_deep_in_a_package_is_another_version_and_is_seen(plugin, host):
    imports = "from near_pack.deep import ONE as VALUE"
    first = host(plugin(imports, **{"near_pack/__init__": "", "near_pack/deep": "ONE = 1\n"}))
    edited = host(plugin(imports, **{"near_pack/__init__": "", "near_pack/deep": "ONE = 2\n"}))
    assert (value(first), value(edited)) == (1, 2)
    assert edited.versions() != first.versions()


def test_a_file_without_neighbours_has_the_version_of_its_bytes_and_changes_no_path(plugin, host):
    before = list(sys.path)
    made = host(plugin("import json\nVALUE = json.dumps(1)", near_one="VALUE = 1"))
    assert value(made) == "1"
    assert sys.path == before


def test_neighbours_of_one_name_in_two_folders_are_not_taken_for_each_other(plugin, host):
    host(plugin(near_one="VALUE = 1"))
    other = plugin(folder="others", near_one="VALUE = 2")
    with pytest.raises(PluginError, match=r"imports its neighbour near_one\.py, but .*plugins.*near_one\.py.*rename"):
        host(other)


def test_what_is_installed_is_not_hidden_by_a_neighbour(plugin, host, module):
    module("near_one", "VALUE = 'installed'\n")
    assert value(host(plugin(near_one="VALUE = 'beside'"))) == "installed"


def test_a_relative_import_is_told_what_to_write(plugin, host):
    with pytest.raises(PluginError, match="import its neighbour without the leading dot"):
        host(plugin("from .near_one import VALUE", near_one="VALUE = 1"))


def test_objects_of_a_neighbour_reach_a_spawned_worker(plugin, host, tmp_path):
    host(plugin("from near_one import Data, VALUE", near_one="VALUE = 1\nclass Data: ...\n"))
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(sys.modules["near_one"].Data()))
    code = f"""
import multiprocessing, pickle, sys
sys.path[:] = {sys.path!r}  # as multiprocessing does for a worker that it spawns
print(type(pickle.load(open({str(tmp_path / "data.pickle")!r}, "rb"))).__qualname__)
"""
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True)
    assert done.stdout.strip() == "Data", done.stderr


def test_a_folder_is_no_plugin_file(plugin, host, tmp_path):
    plugin(near_one="VALUE = 1")
    with pytest.raises(ConfigurationError, match=r"is a folder: name a file in it \(mine\.py, near_one\.py\)"):
        host(str(tmp_path / "plugins"))


@pytest.mark.parametrize("content", [b"\xff\xfeV\x00=\x001\x00", b"x = '\xff'\n", b"a\0b"])
def test_a_file_that_is_no_python_text_is_told_as_such(tmp_path, host, content):
    (tmp_path / "mine.py").write_bytes(content)
    with pytest.raises(PluginError, match="plugin 'mine'") as caught:
        host(str(tmp_path / "mine.py"))
    assert "None" not in str(caught.value)
