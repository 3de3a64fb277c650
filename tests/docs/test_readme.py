"""The README's commands and scripts, and what all documents have in common."""

import re
import subprocess
import sys

import pytest

from tests.docs.markdown import DOCS, FILES, ROOT, blocks, commented, titled
from tests.docs.shell import Shell

README = ROOT / "README.md"
CI = ROOT / ".ci" / "run"


@pytest.mark.parametrize("title", ["script.py", "foreign.py"])
def test_a_script_of_the_readme_runs(title, tmp_path):
    (tmp_path / title).write_text(titled(README, title).text)
    command = [sys.executable, title]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if title == "script.py":
        assert (tmp_path / "runs" / "mobilenet" / "student.safetensors").exists()
        again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "already finished" in again.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the shell is POSIX")
def test_the_plugin_of_the_readme_runs_with_the_command_below_it(tmp_path):
    shell = Shell(tmp_path)
    (shell.work / "probabilities.py").write_text(titled(README, "probabilities.py").text)
    command = commented(README, "command: plugin").text.strip()
    shell.run(f"{command} --set train.epochs=1 --set teacher.train.epochs=1 --set baseline=false")
    assert "probabilities" in (shell.work / "runs" / "digits" / "metrics.jsonl").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="the shell is POSIX")
@pytest.mark.parametrize("name", ["demo", "tests"])
def test_ci_executes_the_very_command_of_the_readme(name):
    command = commented(README, f"command: {name}").text
    assert len(command.splitlines()) == 1
    script = CI.read_text(encoding="utf-8")
    assert f'bash -euo pipefail -c "$(readme {name})"' in script
    (function,) = re.findall(r"^readme\(\) \{\n.*?^\}\n", script, flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["bash", "-c", f"{function}readme {name}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == command


def test_the_result_stands_between_its_markers():
    text = README.read_text(encoding="utf-8")
    assert re.search(r"<!-- result: digits -->\n(.*\n)*?<!-- end -->", text)


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 190


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    for target in targets:
        name, _, anchor = target.partition("#")
        linked = path if not name else (path.parent / name).resolve()
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{path.name} links to {target}"


def anchors(path):
    """The anchors that a forge makes of a document's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_document_names_a_place_on_somebodys_machine(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"(?<![\w.~$}])/(?:home|root|Users|tmp|work|opt|mnt|data|usr)/\S*|[A-Z]:\\\S*", text)
    assert not found


def test_every_block_is_closed_and_says_its_language():
    for path in FILES:
        assert path.read_text(encoding="utf-8").count("\n```") % 2 == 0, path
        assert all(block.language for block in blocks(path)), path


def test_every_document_is_linked_from_the_readme():
    text = README.read_text(encoding="utf-8")
    assert all(f"docs/{path.name}" in text for path in DOCS.glob("*.md"))
