"""One launcher and one undisturbed training for all tests of a process."""

import pytest

from tests.faults import shim
from tests.faults.launcher import Launcher
from tests.faults.reference import undisturbed


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    if reason := shim.why_not():
        pytest.skip(reason)
    with Launcher(tmp_path_factory.mktemp("shim")) as started:
        yield started


@pytest.fixture(scope="session")
def reference(launcher, tmp_path_factory):
    return undisturbed(launcher, tmp_path_factory.mktemp("reference").resolve() / "reference")


@pytest.fixture
def folder(tmp_path):
    """As the system names it: the shim compares names."""
    return tmp_path.resolve()
