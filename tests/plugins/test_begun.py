"""What ``kdengine plugins new`` writes, in a stranger's hands: installed by pip, tested as installed, used in a run."""

import json
import sys

import pytest

from kdengine.cli.scaffold import KINDS
from tests.docs.shell import Shell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the shell is POSIX"),
]

TRIAL = "kdengine run digits "
FEW_STEPS = "--set train.epochs=1 --set train.log_every=1 --set teacher.train.epochs=1 --set baseline=false"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A shell in which a package of each kind was begun and installed, and how a run uses each."""
    shell = Shell(tmp_path_factory.mktemp("begun"))
    trials = {}
    for kind in KINDS:
        said = shell.run(f"kdengine plugins new some-{kind} --kind {kind}")
        (trials[kind],) = (line.strip() for line in said.splitlines() if TRIAL in line)
    shell.run(f"pip install {' '.join(f'./some-{kind}' for kind in KINDS)}")
    for kind in KINDS:
        (shell.work / f"some-{kind}" / f"some_{kind}.py").unlink()  # from here on there is what is installed
    return shell, trials


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_passes_its_tests_as_installed(kind, begun):
    shell, _ = begun
    assert "site-packages" in shell.run(f"python -c 'import some_{kind}; print(some_{kind}.__file__)'")
    assert " passed" in shell.run(f"pytest some-{kind}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].components])
def test_the_kit_finds_nothing_as_a_command_either(kind, begun):
    shell, _ = begun
    assert f"some-{kind}: 1 component, all hold" in shell.run(f"kdengine plugins check some-{kind}")


def test_a_run_uses_them_by_the_commands_that_were_printed(begun):
    shell, trials = begun
    options = " ".join(trial.removeprefix(TRIAL) for trial in trials.values())
    shell.run(f"{TRIAL}{options} {FEW_STEPS} --out few")
    run = shell.work / "few"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["plugins"] == {f"some-{kind}": "0.1.0" for kind in KINDS}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert all(record["some_loss"] > 0 for record in train)
    assert [train[at]["kd.temperature"] for at in (0, -1)] == pytest.approx([4.0, 1.0])
    lines = [line.split(",") for line in (run / "some_logger.csv").read_text().splitlines()]
    assert [float(value) for kind, _, name, value in lines if (kind, name) == ("train", "loss")] == pytest.approx(
        [record["loss"] for record in train]
    )
    assert "some-callback" in (run / "recipe.toml").read_text()
