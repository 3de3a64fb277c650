"""kdengine-tensorboard, installed as a stranger would install it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "plugins" / "kdengine-tensorboard"

USE = """
import json, pathlib, sys
from kdengine.api import RunInfo
from kdengine.host import Host

component = Host().component("loggers", "tensorboard")
light = "tensorboard" not in sys.modules and "torch.utils.tensorboard" not in sys.modules
kind = component.load()
logger = kind()
logger.start(RunInfo("student", pathlib.Path(sys.argv[1]), 10, 1))
logger.log({"loss": 0.5}, step=1, kind="train")
logger.finish("finished")
print(json.dumps({"file": sys.modules[kind.__module__].__file__, "version": component.version, "light": light}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the built and installed package, and nothing of the checkout."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / PACKAGE.name
    source.mkdir()
    for path in PACKAGE.rglob("*"):  # a copy: the build leaves its folders beside the source
        if path.is_file() and not {"build", "__pycache__"} & set(path.parts):
            copy = source / path.relative_to(PACKAGE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True)
    return target


def test_an_installed_package_is_found_and_writes_events(site, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert Path(report["file"]).is_relative_to(site)
    assert report["version"] == "0.1.0"
    assert report["light"], "offering the logger imported TensorBoard"
    assert list((tmp_path / "tensorboard" / "student").glob("events.out.tfevents.*"))


def test_the_installed_package_brings_no_tests_and_says_that_it_is_typed(site):
    assert (site / "kdengine_tensorboard" / "py.typed").exists()
    assert not (site / "tests").exists()
