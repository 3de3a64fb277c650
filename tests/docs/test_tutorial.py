"""The plugin tutorial, executed from the first block to the last."""

import json
import sys

import pytest

from tests.docs.markdown import DOCS, blocks
from tests.docs.shell import Shell

TUTORIAL = DOCS / "plugin-tutorial.md"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the shell is POSIX")


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    shell = Shell(tmp_path)
    output = ""
    for block in blocks(TUTORIAL):
        if block.title is not None:
            (shell.work / block.title).write_text(block.text)
        elif block.language == "sh":
            output = shell.run(block.text)
        else:
            assert block.language == "text", f"line {block.line}: a block that is neither file, command nor output"
            missing = [line for line in block.text.splitlines() if line not in output]
            assert not missing, f"line {block.line}: {missing} is not in\n{output}"
    for name in ("file", "installed", "qualified", "wheel"):
        assert "focal_kd" in (shell.work / "runs" / name / "metrics.jsonl").read_text()
    assert json.loads((shell.work / "runs" / "wheel" / "summary.json").read_text())["plugins"] == {"focal-kd": "0.1.0"}
