"""Packages that ``kdengine plugins new`` begins: what is refused, and that their tests pass as they stand."""

import ast
import os
import sys
import tomllib

import pytest

from kdengine.cli import scaffold
from tests.docs.markdown import ROOT, blocks


def everything(folder):
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def run_tests(monkeypatch):
    """Run a package's tests in this process; nothing of them stays imported."""

    def run(folder, *arguments):
        before = set(sys.modules)
        monkeypatch.setattr(sys, "path", sys.path[:])
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", f"--rootdir={folder}"]
        code = pytest.main([*options, *arguments, str(folder)])
        for name in set(sys.modules) - before:
            if str(folder) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]
        return code

    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return run


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_the_tests_of_a_package_pass_as_it_stands(kind, kd, place, run_tests):
    code, out, _ = kd("plugins", "new", f"some-{kind}", "--kind", kind)
    assert code == 0
    folder = place / f"some-{kind}"
    assert list(everything(folder)) == ["README.md", "pyproject.toml", f"some_{kind}.py", f"tests/test_some_{kind}.py"]
    assert all(name in out for name in everything(folder))
    assert ("kdengine plugins check" in out) == (kind != "callback"), "callbacks are no component"
    assert run_tests(folder) == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("loss", ("self.temperature**2 * terms.sum(dim=-1)", "self.temperature**2 * terms.sum(dim=-1).mean()")),
        ("loss", ("torch.where(p > 0, p * (log_p - log_q), 0.0)", "p * (log_p - log_q)")),
        ("schedule", ("progress.fraction", "1 / progress.step")),
        ("logger", ("self._file.truncate(self._bytes)", "pass")),
        ("callback", ('self.best, self.waited = state["best"], state["waited"]', "pass")),
    ],
    ids=["mean", "nan", "undefined", "resume", "state"],
)
def test_the_tests_of_a_package_fail_where_it_is_wrong(kind, change, kd, place, run_tests):
    kd("plugins", "new", "wrong", "--kind", kind)
    module = place / "wrong" / "wrong.py"
    text = module.read_text()
    assert change[0] in text
    module.write_text(text.replace(*change))
    assert run_tests(place / "wrong", "-x") == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_the_readme_tells_what_is_there(kind, kd, place):
    kd("plugins", "new", "Some.kd", "--kind", kind)
    readme = place / "Some.kd" / "README.md"
    project = tomllib.loads((place / "Some.kd" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "Some.kd"
    assert "license" not in project["project"], "it is the author's to choose"
    assert "## Licence" in readme.read_text()
    assert list(project["project"]["entry-points"]["kdengine"]) == ["some-kd"]
    for block in blocks(readme):
        if block.language == "toml":
            assert "some" in str(tomllib.loads(block.text))
        if block.language == "python":
            compile(block.text, str(readme), "exec")


def test_the_class_and_the_module_are_named_after_the_package(kd, place):
    kd("plugins", "new", "Focal.kd-2", "--kind", "loss", "--out", "deep/er/focal")
    tree = ast.parse((place / "deep" / "er" / "focal" / "focal_kd_2.py").read_text())
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["FocalKD2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a/b", "--kind", "loss"], "'a/b' is no name of a package: expected letters and digits"),
        (["a/b", "--kind", "loss"], "--out"),
        (["-", "--kind", "loss"], "such as focal-kd"),
        (["focal-", "--kind", "loss"], "such as focal-kd"),
        (["\u017f-kd", "--kind", "loss"], "such as focal-kd"),
        (["focal\n", "--kind", "loss"], "such as focal-kd"),
        (["3d", "--kind", "loss"], "begins with a letter"),
        (["class", "--kind", "loss"], "no word of the language"),
        (["json", "--kind", "logger"], "a name that is in use"),
        (["setup", "--kind", "logger"], "a name that is in use"),
        (["builtin", "--kind", "logger"], "a name that is in use"),
        (["torch", "--kind", "loss"], "the installed package torch has a module 'torch' as well"),
        (["KD", "--kind", "loss"], "kdengine has a loss 'kd' already"),
        (["focal", "--kind", "losses"], "expected loss, schedule, logger or callback; did you mean 'loss'?"),
        (["focal", "--kind", "optimizer"], "--kind 'optimizer': expected loss, schedule, logger or callback"),
        (["focal"], "--kind is missing: expected loss, schedule, logger or callback"),
    ],
)
def test_what_cannot_be_begun_is_refused_and_nothing_is_written(arguments, said, kd, place):
    before = everything(place)
    code, _, err = kd("plugins", "new", *arguments)
    assert code == 2
    assert said in err
    assert everything(place) == before


def test_a_name_of_another_kind_is_free(kd):
    assert kd("plugins", "new", "kd", "--kind", "callback")[0] == 0


def test_a_plugin_that_is_installed_is_begun_anew_only_under_the_name_of_its_package(kd, place, monkeypatch):
    (place / "kd_other.py").write_text("")
    info = place / "kd_other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kd-other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kdengine]\nfocal = kd_other\n")
    (info / "top_level.txt").write_text("kd_other\n")
    monkeypatch.syspath_prepend(place)
    code, _, err = kd("plugins", "new", "focal", "--kind", "loss")
    assert (code, "the installed package kd-other has a plugin 'focal' as well" in err) == (2, True)
    assert kd("plugins", "new", "kd-other", "--kind", "loss")[0] == 0
    (info / "entry_points.txt").unlink()
    code, _, err = kd("plugins", "new", "kd-other", "--kind", "loss", "--out", "again")
    assert (code, "the installed package kd-other has a module 'kd_other' as well" in err) == (2, True)


@pytest.mark.parametrize("present", ["folder", "full folder", "file", "broken link"])
def test_what_is_there_already_stays_as_it_is(present, kd, place):
    target = place / "focal"
    if present == "file":
        target.write_text("mine")
    elif present == "broken link":
        target.symlink_to(place / "nowhere")
    else:
        target.mkdir()
        if present == "full folder":
            (target / "focal.py").write_text("mine")
    before = {name: path.read_bytes() for name, path in everything(place).items()}
    code, _, err = kd("plugins", "new", "focal", "--kind", "loss")
    assert code == 2
    assert "focal is there already and stays as it is; choose another folder with --out" in err
    assert {name: path.read_bytes() for name, path in everything(place).items()} == before
    assert os.path.lexists(target)
    assert not (place / "nowhere").exists()


def test_a_folder_inside_a_file_is_an_error_that_names_the_file(kd, place):
    code, _, err = kd("plugins", "new", "focal", "--kind", "loss", "--out", "small.toml/focal")
    assert code == 2
    assert "small.toml" in err


def test_nothing_is_left_where_writing_fails(kd, place, monkeypatch):
    def full(template, values):
        if template == "README.md":
            raise OSError(28, "No space left on device", "README.md")
        return render(template, values)

    render = scaffold.render
    monkeypatch.setattr(scaffold, "render", full)
    code, _, err = kd("plugins", "new", "focal", "--kind", "loss")
    assert (code, err) == (2, "error: no space left on device: README.md\n")
    assert not (place / "focal").exists()


def test_plugins_is_the_list_as_before_and_its_help_names_new(kd):
    assert "kdengine.losses" in kd("plugins")[1]
    assert "new" in kd("plugins", "--help")[1]
    assert "loss, schedule, logger" in kd("plugins", "new", "--help")[1]


def test_every_template_is_part_of_the_distribution():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["kdengine"]
    matched = {path for pattern in declared for path in (ROOT / "kdengine").glob(pattern)}
    templates = {path for path in scaffold.TEMPLATES.rglob("*") if path.is_file()}
    assert len(templates) == 2 + 3 * len(scaffold.KINDS)
    assert templates <= matched


def test_no_package_has_a_name_that_its_own_files_give_to_something_else():
    """The module is imported into its test, and the class stands beside what the templates import."""
    names = scaffold.Names.of("x-y", "loss")
    for kind in scaffold.KINDS:
        for path, text in scaffold.files(names, kind):
            if not path.endswith(".py"):
                continue
            for name in bound(ast.parse(text)) - {"x_y", "XY", "plugin", "kdengine_hook_version"}:
                is_free = name.startswith(("test_", "kdengine_")) or name in sys.stdlib_module_names
                installed = name in ("torch", "pytest", "wide", "annotations")
                assert is_free or installed or name in scaffold.TAKEN | scaffold.IN_USE, f"{kind}: {name}"


def bound(tree):
    """The names that a module gives to something."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets}
    return found
