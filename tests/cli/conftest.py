"""A small recipe, a cache of its own for trained teachers, and the command line in this process or in another."""

import os
import subprocess
import sys

import pytest

from kdengine.cli.main import invoke

RECIPE = """\
version = 1
name = "small"
data = { use = "digits", batch_size = 64, labelled = 0.1 }
teacher = { use = "mlp", hidden = [16], train = { epochs = 1 } }
student = { use = "mlp", hidden = [8], dropout = 0.2 }
losses.kd = { weight = 0.9, temperature = 2.0 }
losses.ce = { weight = 0.1 }
optimizer = { use = "adam", lr = 3e-3 }
train = { epochs = 2, seed = 0 }
evaluate = { metrics = ["top1", "agreement"] }
"""


@pytest.fixture(scope="session")
def teacher_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(tmp_path, monkeypatch, teacher_cache):
    """An empty working directory with small.toml in it."""
    monkeypatch.setenv("KDENGINE_CACHE", str(teacher_cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def kd(place, capsys):
    """Carry out a command line here: exit code, standard output, standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = invoke([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def process(place):
    """Carry out a command line in a process of its own."""

    def call(*arguments, **options):
        command = [sys.executable, "-m", "kdengine", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), **options)

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory, teacher_cache):
    """The directory of a finished run; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.toml").write_text(RECIPE.replace("epochs = 2", "epochs = 1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDENGINE_CACHE", str(teacher_cache))
        assert invoke(["run", str(folder / "small.toml"), "-q", "--out", str(folder / "run")]) == 0
    return folder / "run"
