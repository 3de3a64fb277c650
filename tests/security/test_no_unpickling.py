"""No way of loading leads to an unpickler, and none executes what a file says."""

from __future__ import annotations

import ast
import io
import marshal
import os
import pickle
import shelve
import shutil
from collections import OrderedDict
from pathlib import Path
from pickle import loads as loads_held_by_name

import numpy as np
import pytest
import torch

import kdengine
from kdengine.recipe.models import load_weights
from kdengine.teachers.cached import CachedTeacher
from tests.engine.common import StopAt, engine, flat, items, mlp
from tests.security.guard import UnpickledError, no_unpickling

SOURCES = sorted(Path(kdengine.__file__).parent.rglob("*.py"))
UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
    "yaml",
}


class Executed:
    """Pickles to a call that makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


class Poison:
    """Makes one step's gradient infinite, so that a fit rolls back."""

    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_on_backward_end(self, context):
        if context.step == 6:
            next(context.fit.student.parameters()).grad.fill_(float("inf"))


def fit(out, *, epochs=2, resume=None, teacher=None, **options):
    student = mlp(dropout=0.2)
    options = {"optimizer": lambda named: torch.optim.Adam([p for _, p in named], lr=1e-2), **options}
    loader = kdengine.loader(items(), 8, seed=2)
    result = engine(student, teacher, out=out, seed=1, metrics={"top1": "top1"}, **options).fit(
        loader, kdengine.loader(items(), 16, shuffle=False), epochs=epochs, resume=resume
    )
    return student, result


@pytest.mark.parametrize(
    "unpickle",
    [
        lambda data: pickle.loads(data),
        lambda data: pickle.load(io.BytesIO(data)),
        lambda data: pickle.Unpickler(io.BytesIO(data)).load(),
        loads_held_by_name,
        lambda data: torch.load(io.BytesIO(data), weights_only=False),
        lambda data: torch.load(io.BytesIO(data)),
        lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        lambda data: marshal.loads(data),
        lambda data: shelve.open(data),  # noqa: SIM115
    ],
)
def test_the_guard_catches_an_unpickler(unpickle, tmp_path):
    data = pickle.dumps(Executed(tmp_path / "executed"))
    with pytest.raises(UnpickledError), no_unpickling():
        unpickle(data)
    assert not (tmp_path / "executed").exists()


def test_the_guard_leaves_everything_as_it_was(tmp_path):
    with no_unpickling():
        pass
    pickle.loads(pickle.dumps(Executed(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


def test_resume_and_rollback_unpickle_nothing(tmp_path):
    whole, _ = fit(tmp_path / "whole", checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", checkpoint_every=1, plugins=[StopAt(3)])
    with no_unpickling() as restricted:
        resumed, _ = fit(tmp_path / "cut", checkpoint_every=1, resume=True)
        _, rolled = fit(tmp_path / "rolled", checkpoint_every=1, nonfinite="rollback", plugins=[Poison()])
    assert torch.equal(flat(whole), flat(resumed))
    assert rolled.steps == 8
    assert restricted == []


def test_reading_a_run_back_unpickles_nothing(tmp_path):
    student, _ = fit(tmp_path / "run")
    with no_unpickling() as restricted:
        run = kdengine.load_run(tmp_path / "run")
        state = run.student()
    assert run.records
    assert torch.equal(state["0.weight"], student.state_dict()["0.weight"])
    assert restricted == []


def test_cached_logits_unpickle_nothing(tmp_path):
    def trained():
        return fit(None, teacher=CachedTeacher(mlp(32), str(tmp_path / "cache"), items=32))[0]

    first = trained()
    with no_unpickling() as restricted:
        second = trained()
    assert torch.equal(flat(first), flat(second))
    assert restricted == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_read_without_code(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    source, target = mlp(8), mlp(8)
    with torch.no_grad():
        source[0].weight.add_(1)
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        kdengine.engine.student_file.write_weights(path, source.state_dict())
    with no_unpickling() as restricted:
        load_weights(target, path, "teacher")
    assert torch.equal(flat(source), flat(target))
    assert restricted == ([str(path)] if suffix == ".pth" else []), "torch's restricted unpickler, for .pth alone"


@pytest.mark.parametrize(
    "content",
    [
        lambda mark: Executed(mark),
        lambda mark: {"state_dict": OrderedDict(weight=Executed(mark))},
        lambda mark: torch.nn.Linear(1, 1),
    ],
    ids=["call", "call within", "module"],
)
def test_weights_with_code_in_them_are_refused(tmp_path, content):
    path, mark = tmp_path / "weights.pth", tmp_path / "executed"
    torch.save(content(mark), path)
    with pytest.raises(kdengine.CheckpointError, match="runs no code"):
        load_weights(mlp(), path, "teacher")
    assert not mark.exists()


def test_the_command_line_unpickles_nothing(kd, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "summary.json").unlink()
    shutil.copy(run / "student.safetensors", run / "teacher.safetensors")
    with no_unpickling() as restricted:
        assert kd("run", "--resume", "--out", run, "-q")[0] == 0
        for command in (["evaluate", run], ["report", run], ["export", run, tmp_path / "student.safetensors"]):
            assert kd(*command)[0] == 0, command
        assert kd("run", "--resume", "--out", run, "-q", "--set", "train.epochs=2")[0] == 0
    assert restricted == []


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "student.safetensors", "recipe.toml", "checkpoints"])
def test_a_pickle_in_the_place_of_any_file_of_a_run_is_not_executed(kd, finished, tmp_path, name):
    run = shutil.copytree(finished, tmp_path / "run")
    data = pickle.dumps(Executed(tmp_path / "executed"))
    for path in [run / name] if name != "checkpoints" else run.glob("checkpoints/*/*"):
        path.write_bytes(data)
    if name == "checkpoints":
        (run / "summary.json").unlink()
    with no_unpickling():
        for command in (["report", run], ["export", run, tmp_path / "s.pth"], ["evaluate", run],
                        ["run", "--resume", "--out", run, "-q"]):  # fmt: skip
            assert kd(*command)[0] in (0, 2), command
    assert not (tmp_path / "executed").exists()


def test_reading_a_run_does_not_import_what_its_recipe_names(kd, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    recipe = (run / "recipe.toml").read_text()
    assert "plugins = []" in recipe
    (run / "recipe.toml").write_text(recipe.replace("plugins = []", 'plugins = ["./evil.py"]'))
    kdengine.load_run(run).student()
    assert kd("report", run)[0] == 0
    assert kd("export", run, tmp_path / "student.safetensors")[0] == 0
    assert not (tmp_path / "executed").exists()


def unpicklers(tree: ast.AST) -> list[str]:
    """What a module's syntax tree imports or calls that could unpickle."""
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [name for name in names if name.split(".")[0] in UNPICKLERS or name == "torch.load"]
        if isinstance(node, ast.Call):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            if called.endswith("torch.load") and options.get("weights_only") != "True":
                found.append(ast.unparse(node))
            if options.get("allow_pickle", "False") != "False":
                found.append(ast.unparse(node))
            if called.split(".")[-1] == "__import__" or (called == "import_module" and "pickle" in ast.unparse(node)):
                found.append(ast.unparse(node))
    return found


OF_COPIES = Path(kdengine.__file__).parent / "engine" / "copying.py"
"""Reads what the same module has packed, inside of an unpickling that the user asked for, and no file."""


def test_no_module_imports_an_unpickler():
    found = {path: unpicklers(ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert len(found) > 100
    assert {path for path, names in found.items() if names} == {OF_COPIES}


def test_the_unpickler_of_copies_is_reached_from_an_engine_that_is_unpickled_alone():
    callers = [path for path in SOURCES if "unpacked" in path.read_text(encoding="utf-8") and path != OF_COPIES]
    assert [path.name for path in callers] == ["engine.py"]
    reduced = ast.parse(callers[0].read_text(encoding="utf-8"))
    using = [
        node.name
        for node in ast.walk(reduced)
        if isinstance(node, ast.FunctionDef) and any(getattr(part, "id", "") == "unpacked" for part in ast.walk(node))
    ]
    assert using == ["__reduce_ex__"]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, marshal",
        "from pickle import loads",
        "def f():\n    import shelve",
        "import dill as d",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "__import__(name)",
    ],
)
def test_the_search_finds_an_unpickler(source):
    assert unpicklers(ast.parse(source))


def test_the_search_leaves_the_restricted_unpickler():
    assert unpicklers(ast.parse("torch.load(path, map_location='cpu', weights_only=True)")) == []
