import os
import pickle
import subprocess
import sys
import textwrap

import pytest

from kdengine.api.errors import ConfigurationError, PluginError

from .conftest import HEAD, offers

FILE = HEAD + offers(mine="one") + "class Data:\n    pass\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_file_is_named_after_its_stem_and_versioned_by_its_content(file, host):
    made = host(str(file))
    (record,) = made.acting
    assert (record.name, record.origin, record.source) == ("mine", "file", str(file))
    assert record.version.startswith("sha256:")
    assert made.versions() == {"mine": record.version}
    assert made.component("losses", "mine:mine").load()() == "one"


def test_relative_path_is_relative_to_the_working_directory(file, host, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert host("mine.py").acting[0].title == "plugin 'mine' (mine.py)"


def test_file_may_name_itself(file, host):
    file.write_text(FILE + "kdengine_name = 'other'\n")
    assert host(str(file)).acting[0].name == "other"


def test_missing_file_shows_the_nearest(file, host):
    with pytest.raises(ConfigurationError, match=r"plugin file '.*min\.py' does not exist .*did you mean 'mine\.py'"):
        host(str(file.with_name("min.py")))


def test_syntax_error_shows_file_and_line(file, host):
    file.write_text("import kdengine\n\ndef broken(:\n")
    with pytest.raises(PluginError, match=r"plugin 'mine' .* has a syntax error in .*mine\.py, line 3") as caught:
        host(str(file))
    assert isinstance(caught.value.__cause__, SyntaxError)


def test_failing_file_is_attributed_and_can_be_mended(file, host):
    file.write_text("1 / 0\n")
    with pytest.raises(PluginError, match=r"plugin 'mine' \(.*mine\.py\) cannot be imported: ZeroDivisionError"):
        host(str(file))
    file.write_text(FILE)
    assert host(str(file)).acting[0].name == "mine"


def test_file_that_cannot_name_a_plugin(file, host):
    bad = file.rename(file.with_name("my plugin.py"))
    with pytest.raises(ConfigurationError, match="cannot be a plugin under the name 'my plugin'"):
        host(str(bad))


def test_unchanged_file_is_imported_once_and_an_edit_is_seen_at_once(file, host):
    first = host(str(file)).acting[0]
    again = host(str(file)).acting[0]
    assert again.target is first.target
    file.write_text(FILE.replace("'one'", "'two'"))  # same size, same second: cached bytecode would hide it
    edited = host(str(file))
    assert edited.component("losses", "mine").load()() == "two"
    assert edited.acting[0].version != first.version


def test_two_files_of_one_stem_are_two_modules(file, host, tmp_path):
    other = tmp_path / "folder" / "mine.py"
    other.parent.mkdir()
    other.write_text(FILE.replace("'one'", "'other'") + "kdengine_name = 'theirs'\n")
    made = host(str(file), str(other))
    assert made.component("losses", "mine:mine").load()() == "one"
    assert made.component("losses", "theirs:mine").load()() == "other"


def test_file_cannot_overwrite_the_host_by_its_name(file, host):
    import kdengine.host.files as files

    before = files.json
    host(str(file.rename(file.with_name("json.py"))))
    assert files.json is before


def test_same_file_twice(file, host):
    with pytest.raises(ConfigurationError, match="already there"):
        host(str(file), str(file))


def test_objects_of_a_file_reach_a_fresh_process(file, host, tmp_path):
    """A spawned worker unpickles the data set before it has made any host."""
    module = host(str(file)).acting[0].target
    (tmp_path / "data.pickle").write_bytes(pickle.dumps(module.Data()))
    code = textwrap.dedent(f"""
        import pickle
        with open({str(tmp_path / "data.pickle")!r}, "rb") as stream:
            print(type(pickle.load(stream)).__qualname__)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "Data"
