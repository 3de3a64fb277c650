"""The kit as a stranger's conftest uses it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE = """
def test_fixtures(tiny_run, hook_recorder):
    assert tiny_run(plugins=[hook_recorder]).result.steps == 4
    assert hook_recorder.hooks[0] == "fit_start"
"""


@pytest.mark.slow
def test_one_line_in_a_conftest_gives_the_fixtures(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["kdengine.testing"]\n')
    (tmp_path / "test_use.py").write_text(USE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_functions_need_no_pytest(tmp_path):
    code = "import sys, kdengine.testing as kit; kit.check_loss; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
