"""Changed files at random: an error that names the file or a right result, in bounded memory and time.

The default suite takes a few seconds; ``pytest -m exhaustive tests/security`` goes deeper, and ``python -m
tests.security.fuzz_atheris`` as long as one likes.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.security.guard import no_unpickling
from tests.security.targets import TARGETS

HEADROOM = 512 * 2**20
EXAMPLES = {"state": 400, "tensors": 400, "checkpoint": 100, "run": 200, "recipe": 200, "resume": 15}
choices = st.binary(min_size=24, max_size=120)


@contextlib.contextmanager
def bounded():
    """Let this process's address space grow by half a gibibyte only."""
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + HEADROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzzed(name, examples, *, same=False):
    """A property test of a target: with other choices each time, or the same."""

    @settings(
        max_examples=examples, derandomize=same, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(choices)
    def run(data):
        TARGETS[name](data)

    with bounded(), no_unpickling() as restricted:
        run()
    assert restricted == []


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_told_or_read(name):
    fuzzed(name, EXAMPLES[name], same=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", TARGETS)
def test_many_changed_files_are_told_or_read(name):
    fuzzed(name, 1_000 if name == "resume" else 10_000)
