"""The command line's fixtures: a finished run, and calling a command here."""

from tests.cli.conftest import finished, kd, place, teacher_cache

__all__ = ["finished", "kd", "place", "teacher_cache"]
