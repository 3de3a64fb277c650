"""What all processes of one test session share."""

import os
from pathlib import Path

import pytest


def folder(factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of this session: of all of its xdist workers, and of no session before."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
