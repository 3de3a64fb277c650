"""The command line's fixtures, a finished run and calling a command here; and no waiting for the disk."""

import os

import pytest

from tests.cli.conftest import finished, kd, place, teacher_cache

__all__ = ["finished", "kd", "place", "teacher_cache"]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    """What survives a power cut is not the subject here, and hundreds of small checkpoints are written."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
