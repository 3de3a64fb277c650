"""Which implementation of `kd_loss` the tests of this folder run on."""

import os
from collections.abc import Iterator

import pytest

from kdengine.ops import backend
from kdengine.ops.library import UnavailableError


def _use(name: str) -> Iterator[str]:
    before = os.environ.get(backend.VARIABLE)
    os.environ[backend.VARIABLE] = name
    try:
        if name == "compiled":
            _require_library()
        yield name
    finally:
        os.environ.pop(backend.VARIABLE)
        if before is not None:
            os.environ[backend.VARIABLE] = before


def _require_library() -> None:
    try:
        backend.compiled()
    except UnavailableError as error:
        pytest.skip(str(error))


# Of a module, not of a function: hypothesis runs a function many times within one fixture.
@pytest.fixture(scope="module", params=["python", "compiled"])
def each_backend(request):
    """Run once on pure PyTorch and once on the compiled library."""
    yield from _use(request.param)


@pytest.fixture(scope="module")
def compiled_backend():
    """Run on the compiled library."""
    yield from _use("compiled")
