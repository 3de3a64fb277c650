"""One thread a process: the tests run in as many processes as there are cores. They share one compiled library."""

import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the tests of signals send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Compile the library ahead of the tests: some give a process of theirs little time, some move the cache."""
    from kdengine.ops import backend, build, library, sources, toolchain

    os.environ.setdefault("KDENGINE_LIBRARIES", str(build.libraries_folder()))
    is_worker = hasattr(config, "workerinput")
    if is_worker or os.environ.get(backend.VARIABLE) == "python" or library.shipped(sources.CPU) is not None:
        return
    if toolchain.cxx() is None:
        print("there is no C++ compiler here: the tests run in pure PyTorch")
        return
    try:
        build.build(sources.CPU)
    except build.BuildError as error:
        pytest.exit(f"the library cannot be built: {error}", returncode=1)
