"""The pytest fixtures of the kit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kdengine.testing.recorder import HookRecorder
from kdengine.testing.run import TinyRun, tiny_run


@pytest.fixture(name="tiny_run")
def fixture_tiny_run() -> Callable[..., TinyRun]:
    """The function :func:`kdengine.testing.tiny_run`."""
    return tiny_run


@pytest.fixture
def hook_recorder() -> HookRecorder:
    """A fresh :class:`kdengine.testing.HookRecorder`."""
    return HookRecorder()
