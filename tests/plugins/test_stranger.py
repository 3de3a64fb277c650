"""A stranger's package: installed by pip, named in a recipe, run, broken, uninstalled."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "kd-stranger"
version = "2.1"
dependencies = ["kdengine"]

[project.entry-points.kdengine]
stranger = "stranger_kd"

[tool.setuptools]
py-modules = ["stranger_kd"]
"""

MODULE = '''
"""A loss, a logger and a metric."""

import json

import torch

import kdengine

kdengine_hook_version = 1


class SoftLoss(kdengine.Loss):
    """Cross-entropy with softened targets.

    Args:
        temperature: T > 0.
    """

    def __init__(self, temperature: kdengine.Scalar = 2.0) -> None:
        super().__init__()
        self.temperature = temperature

    def per_item(self, batch):
        """T^2 times the cross-entropy of each item."""
        logits = (batch.student.logits, batch.teacher.logits)
        student, teacher = (x if x.itemsize >= 4 else x.float() for x in logits)
        target = torch.softmax(teacher / self.temperature, -1)
        costs = -torch.log_softmax(student / self.temperature, -1)
        return self.temperature**2 * (target * costs.masked_fill(target == 0, 0.0)).sum(-1)


class Lines(kdengine.Logger):
    """A line per record.

    Args:
        name: of the file in the run directory.
    """

    def __init__(self, name: str = "lines.txt") -> None:
        self.name, self.file = name, None

    def start(self, run):
        self.file = run.out and (run.out / self.name).open("a")

    def log(self, record, *, step, kind):
        if self.file:
            self.file.write(json.dumps([kind, step, record], default=str) + chr(10))

    def finish(self, status):
        if self.file:
            self.file.close()


class Confidence(kdengine.Metric):
    """Mean probability of the predicted class."""

    def reset(self):
        self.total, self.items = 0.0, 0

    def update(self, batch):
        self.total += batch.student.logits.softmax(-1).amax(-1).sum()
        self.items += batch.size

    def compute(self):
        return float(self.total) / self.items if self.items else None


@kdengine.hookimpl
def kdengine_losses():
    return {"softloss": SoftLoss}


@kdengine.hookimpl
def kdengine_loggers():
    return {"lines": Lines}


@kdengine.hookimpl
def kdengine_metrics():
    return {"confidence": Confidence}
'''

RECIPE = """
version = 1
data = { use = "digits", batch_size = 128 }
teacher = { use = "mlp", hidden = [16], train = { epochs = 1 } }
student = { use = "mlp", hidden = [8] }
losses.soft = { use = "stranger:softloss", temperature = { schedule = "linear", start = 4, end = 1 } }
optimizer = { use = "adam", lr = 3e-3 }
train = { epochs = 1, log_every = 1, device = "cpu" }
evaluate = { metrics = ["top1", "stranger:confidence"] }
loggers = [{ use = "stranger:lines", name = "mine.txt" }]
"""

RUN = """
import sys
from pathlib import Path
from kdengine.host import Host
from kdengine.recipe.load import find, load
from kdengine.recipe.plan import make_plan
from kdengine.recipe.run import Options, run

source = find(sys.argv[1])
recipe = load(source)
plan = make_plan(recipe, Host(recipe.plugins), source)
run(plan, Options(Path(sys.argv[2]), loggers=lambda: [bound() for bound in plan.loggers.values()]))
"""


def install(source, target):
    """What a stranger's user does, into a folder of its own."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--upgrade", "--target", str(target), str(source)], check=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "stranger_kd.py").write_text(MODULE)
    install(source, target)
    return target


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tmp_path, site, cache):
    """Run a recipe in a process of its own; ``module`` stands in for the installed module."""

    def start(plugins=(), *, module=None, installed=True):
        folder = tmp_path / "broken"
        if module is not None:  # before the site on the path, with the site's entry point
            folder.mkdir()
            (folder / "stranger_kd.py").write_text(MODULE + textwrap.dedent(module))
        path = [str(folder), str(site)] if installed else []
        (tmp_path / "tiny.toml").write_text(f"plugins = {json.dumps(list(plugins))}\n" + RECIPE)
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "KDENGINE_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-c", RUN, "tiny.toml", "out"]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    return start


def last_line(done):
    assert done.returncode != 0, done.stdout
    lines = done.stderr.strip().splitlines()
    at = max(i for i, line in enumerate(lines) if line.startswith("kdengine.") and "Error: " in line)
    return " ".join(line.strip() for line in lines[at:])


def test_an_installed_package_works_from_a_recipe(run, tmp_path):
    done = run()
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["student"]["metrics"]) == {"top1", "stranger:confidence"}
    assert summary["plugins"] == {"stranger": "2.1"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "mine.txt").read_text().splitlines()]
    records = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    temperatures = [record["soft.temperature"] for kind, _, record in lines if kind == "train"]
    assert temperatures[0] == 4.0
    assert temperatures[-1] == 1.0
    assert temperatures == sorted(temperatures, reverse=True)
    assert [step for _, step, _ in lines] == [record["step"] for record in records]


CHECK = """
from kdengine.host import Host
from kdengine.testing import check_plugin
print(*check_plugin("stranger"), sep="; ")
try:
    Host(["stranger>=3"])
except ValueError as error:
    print(error)
"""


def test_it_passes_the_kit_and_another_version_is_refused(site, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    checked, refused = done.stdout.splitlines()
    assert checked == "losses softloss: checked; loggers lines: checked; metrics confidence: checked"
    assert "plugin 'stranger' (kd-stranger 2.1)" in refused
    assert "pip install 'kd-stranger>=3'" in refused


@pytest.mark.parametrize("plugins", [[], ["stranger>=2"]], ids=["offers", "acts"])
def test_without_the_package_the_recipe_says_what_to_install(run, tmp_path, plugins):
    said = last_line(run(plugins, installed=False))
    assert "plugin 'stranger' is not installed" in said
    assert "pip install stranger" in said
    assert not (tmp_path / "out").exists()


def test_an_import_error_is_attributed(run):
    said = last_line(run(["stranger"], module="import nothing_of_that_name"))
    assert "plugin 'stranger' (kd-stranger 2.1) cannot be imported: ModuleNotFoundError" in said
    assert "nothing_of_that_name" in said


def test_bad_signatures_are_all_named_at_once(run):
    said = last_line(
        run(
            ["stranger"],
            module="""
            @kdengine.hookimpl
            def kdengine_on_step_end(*, context):
                pass

            @kdengine.hookimpl
            def kdengine_on_step_endd(context):
                pass
            """,
        )
    )
    assert "plugin 'stranger' (kd-stranger 2.1) cannot be used" in said
    assert "kdengine_on_step_end has the keyword-only argument 'context'" in said
    assert "kdengine_on_step_endd is no hook of kdengine; did you mean 'kdengine_on_step_end'?" in said


def test_an_exception_in_a_callback_is_attributed_with_its_step(run):
    done = run(
        ["stranger"],
        module="""
        @kdengine.hookimpl
        def kdengine_on_step_end(context):
            if context.step == 7 and context.fit.name == "student":
                raise ValueError("seven")
        """,
    )
    said = last_line(done)
    assert "plugin 'stranger' (kd-stranger 2.1) failed in kdengine_on_step_end at step 7: ValueError: seven" in said
    assert "stranger_kd.py" in done.stderr, "the original traceback is shown as the cause"


def test_uninstalling_leaves_no_trace(tmp_path_factory):
    target, source = tmp_path_factory.mktemp("other-site"), tmp_path_factory.mktemp("other-source")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "stranger_kd.py").write_text(MODULE)
    venv = target / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(venv)], check=True)
    python = next(path for path in (venv / "bin" / "python", venv / "Scripts" / "python.exe") if path.exists())
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    options = ["-q", "--no-deps", "--no-index", "--find-links"]
    wheels = target / "wheels"
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    before = files_in(venv)
    subprocess.run([*pip, "install", *options, str(wheels), "kd-stranger"], check=True)
    assert any(path.name == "stranger_kd.py" for path in files_in(venv) - before)
    subprocess.run([*pip, "uninstall", "-q", "-y", "kd-stranger"], check=True)
    assert files_in(venv) == before


def files_in(folder):
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
