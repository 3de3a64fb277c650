"""The tests of the operator on every instruction set of this processor: a process has one, so each gets its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdengine.ops import backend, backend_info

HERE = Path(__file__).parent
TESTS = ("test_kd_loss.py", "test_compiled.py")


def run(isa, *command):
    environment = os.environ | {backend.VARIABLE: "compiled", backend.ISA_VARIABLE: isa}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("isa", backend.INSTRUCTION_SETS)
@pytest.mark.usefixtures("compiled_backend")
def test_the_operator_passes_on(isa):
    best = backend_info().isa
    order = backend.INSTRUCTION_SETS
    if order.index(isa) < order.index(best):
        pytest.skip(f"this processor has {best} at best")
    if isa == best:
        pytest.skip(f"{isa} is what the other tests run on")
    selected = "compiled and not python and not docstrings and not operator_needs"
    done = run(isa, "-m", "pytest", "-n", "0", "-x", "-k", selected, *(str(HERE / name) for name in TESTS))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.usefixtures("compiled_backend")
@pytest.mark.parametrize("isa", backend.INSTRUCTION_SETS)
def test_an_instruction_set_is_taken_or_refused_by_name(isa):
    code = "from kdengine.ops import backend, backend_info; backend.compiled(); print(backend_info().isa)"
    done = run(isa, "-c", code)
    if done.returncode == 0:
        assert done.stdout.strip() == isa
    else:
        assert isa in done.stderr
        assert backend.INSTRUCTION_SETS.index(isa) < backend.INSTRUCTION_SETS.index(backend_info().isa)
