"""The operator's own tests, where they apply, on the emulated device; the short ones run with the other module."""

import pytest

from ..ops.on_a_device import *  # noqa: F403
from .cuda_emulation.fixtures import emulated_device, emulated_library, emulated_operator  # noqa: F401

pytestmark = pytest.mark.slow
