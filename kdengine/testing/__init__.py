"""The test kit that builtins and strangers pass alike.

Functions ``check_loss``, ``check_schedule``, ``check_logger`` and ``check_plugin`` raise an ``AssertionError`` that
says what failed and by how much; ``certify_loss`` goes through everything and reports it as a certificate. A
``conftest.py`` with ``pytest_plugins = ["kdengine.testing"]`` gives the fixtures ``tiny_run`` and ``hook_recorder``;
nothing here needs pytest otherwise.
"""

from kdengine.testing.certificate import Certificate, Finding
from kdengine.testing.loggers import check_logger
from kdengine.testing.losses import certify_loss, check_loss
from kdengine.testing.plugins import check_plugin
from kdengine.testing.recorder import HookRecorder
from kdengine.testing.run import TinyRun, tiny_run
from kdengine.testing.schedules import check_schedule

__all__ = [
    "Certificate",
    "Finding",
    "HookRecorder",
    "TinyRun",
    "certify_loss",
    "check_logger",
    "check_loss",
    "check_plugin",
    "check_schedule",
    "tiny_run",
]

pytest_plugins = ["kdengine.testing.fixtures"]
