"""The emulated device as fixtures; `device` also stands in for the operator in the tests of `kdengine.ops`."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from ... import session
from ...ops import test_kd_loss as spec
from .operator import Emulation, build


@pytest.fixture(scope="session", name="library")
def emulated_library(tmp_path_factory):
    if ahead := os.environ.get("KDENGINE_CUDA_EMULATION"):
        return Path(ahead)  # built ahead, to save a minute while developing
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = session.folder(tmp_path_factory) / "cuda_emulation"
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        return folder / "emulated.so" if (folder / "emulated.so").exists() else build(folder)


@pytest.fixture(scope="session", name="emulation")
def emulated_operator(library):
    return Emulation(library)


@pytest.fixture(autouse=True, name="device")
def emulated_device(emulation, monkeypatch):
    emulation.become()
    monkeypatch.setattr(spec, "kd_loss", emulation.kd_loss)
    return emulation
