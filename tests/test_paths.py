"""A home is found wherever a path is taken; a shell leaves ``--out=~/run`` as it is, and a recipe has no shell."""

from pathlib import Path

import pytest
from torch import nn

import kdengine
from kdengine._paths import expanded
from kdengine.cli.main import invoke
from kdengine.cli.planning import placed
from kdengine.data.cifar import cifar10
from kdengine.losses import CE
from kdengine.teachers.cached import CachedTeacher


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("text", ["a/~/b", "~nobody-of-this-name/x", "x~"])
def test_only_a_home_at_the_beginning_is_one(home, text):
    assert expanded(text) == Path(text)


def test_paths_of_the_library(home):
    assert expanded("~") == home
    engine = kdengine.Engine(nn.Linear(2, 2), losses=[CE()], loggers=[], out="~/run")
    assert engine.out == home / "run"
    with pytest.raises(kdengine.CheckpointError, match=str(home / "run")):
        kdengine.load_run("~/run")
    assert CachedTeacher(nn.Linear(2, 2), "~/logits", 4).folder == home / "logits"
    with pytest.raises(kdengine.ConfigurationError, match=str(home / "data")):
        cifar10("train", root="~/data", download=False)


def test_paths_of_the_command_line_and_of_a_recipes_plugins(home, capsys):
    assert placed("~/mine.py", Path("recipes")) == str(home / "mine.py")
    assert invoke(["schema", "--out=~/recipe.json"]) == 0
    assert (home / "recipe.json").is_file()
    assert invoke(["report", "~/absent"]) == 2
    assert f"{home}/absent" in capsys.readouterr().err
    assert invoke(["plugins", "check", "~/absent.py"]) == 2
    assert "does not exist" in capsys.readouterr().err
