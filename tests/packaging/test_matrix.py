"""One wheel, built here, in fresh environments: the oldest torch, a CPU-only build, the newest; several Pythons.

Every environment downloads torch, gigabytes for a CUDA build, so these tests run on demand only::

    pytest -m matrix -n 0 -s
"""

import shutil
import sys
from pathlib import Path

import pytest

from tests.packaging import project

pytestmark = pytest.mark.matrix

CHECK = Path(__file__).with_name("check.py")

ENVIRONMENTS = {
    "oldest": ("3.11", "torch==2.10.0"),
    "next": ("3.12", "torch==2.11.0"),
    "cpu-only": ("3.11", "torch==2.13.0"),
    "newest": ("3.13", "torch"),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return project.shared_wheel(tmp_path_factory)


def interpreter(version):
    """A Python of this version: on the path, or one of pyenv's."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    places = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), shutil.which(f"python{version}")]
    found = next(filter(None, places), None)
    if found is None:
        pytest.skip(f"there is no Python {version} here")
    return str(found)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_wheel_computes(name, wheel, tmp_path):
    version, torch = ENVIRONMENTS[name]
    try:
        project.run([interpreter(version), "-m", "venv", "environment"], tmp_path)
        install = ["environment/bin/pip", "install", "-q", "--no-cache-dir", "--disable-pip-version-check"]
        project.run([*install, torch, str(wheel)], tmp_path)
        out = project.run(["environment/bin/python", "-I", str(CHECK)], tmp_path, CXX="no-compiler")
        if name == "cpu-only" and ", cuda None:" not in out:
            pytest.skip(f"the registry has no CPU-only build here: {out}")
        assert "the library came with this installation" in out
        print(f"\n{name}: {out}", end="")
    finally:
        shutil.rmtree(tmp_path / "environment", ignore_errors=True)
