"""What is wrong with a command line, a recipe or a plugin is one message and the right exit code."""

import subprocess
import sys

import pytest

from kdengine.api import NonFiniteError
from kdengine.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "digists"], ["no recipe 'digists'", "did you mean 'digits'"]),
        (["run", "absent.toml"], ["no recipe file absent.toml"]),
        (["check", "small.toml", "--set", "train.epoch=3"], ["train.epoch", "did you mean 'epochs'"]),
        (["check", "small.toml", "--set", "train.epochs=many"], ["train.epochs = 'many'", "a whole number"]),
        (["check", "small.toml", "--set", "student.use=mpl"], ["did you mean 'mlp'"]),
        (["check", "small.toml", "--set", "losses.kd.temprature=2"], ["did you mean 'temperature'"]),
        (["check", "small.toml", "--set", "losses.kd.temperature='hot'"], ["losses.kd.temperature = 'hot'", "number"]),
        (["check", "small.toml", "--set", "version=2"], ["reads recipes of version 1", "newer kdengine"]),
        (["check", "small.toml", "--set", "epochs"], ["expects key=value", "'epochs'"]),
        (["check", "small.toml", "--plugin", "nobody"], ["plugin 'nobody' is not installed"]),
        (["check", "small.toml", "--plugin", "absent.py"], ["absent.py"]),
        (["check", "small.toml", "--no-plugin", "builtin"], ["cannot be switched off"]),
        (["run", "small.toml", "--seeds", "0"], ["--seeds"]),
        (["evaluate", "absent"], ["absent is no run directory"]),
        (["report", "absent"], ["absent"]),
        (["plugins", "show", "temprature"], ["no plugin or component 'temprature'"]),
        (["nonsense"], ["No such command 'nonsense'"]),
        (["run", "--nonsense"], ["No such option", "--nonsense"]),
    ],
)
def test_bad_input_is_one_message(kd, arguments, said):
    code, out, err = kd(*arguments)
    assert code == 2
    for part in said:
        assert part in err
    assert "Traceback" not in err
    assert not out


@pytest.mark.parametrize(
    "variable", ["KDENGINE_BACKEND", "KDENGINE_CPU_ISA", "KDENGINE_CUDA", "KDENGINE_DISABLE_PLUGIN_AUTOLOAD"]
)
def test_a_wrong_environment_is_refused_before_anything_is_written(kd, place, monkeypatch, variable):
    monkeypatch.setenv(variable, "compield")
    code, _, err = kd("run", "small.toml")
    assert code == 2
    assert f"{variable} must be one of" in err
    assert "Traceback" not in err
    assert not list(place.glob("runs/*"))


def test_all_problems_of_a_recipe_come_at_once_with_their_lines(kd, place):
    text = (place / "small.toml").read_text()
    text = text.replace("dropout = 0.2", "dropuot = 0.2").replace("temperature", "temprature").replace("adam", "adma")
    (place / "bad.toml").write_text(text.replace("epochs = 2", "epochs = 'two'"))
    code, _, err = kd("check", "bad.toml")
    assert code == 2
    assert "bad.toml: 4 problems" in err
    assert "line 9: train.epochs = 'two'" in err
    assert "line 5: student.dropuot" in err
    assert "line 6: losses.kd.temprature" in err
    assert "line 8: optimizer.use = 'adma'" in err


def test_toml_that_cannot_be_read_says_where(kd, place):
    (place / "bad.toml").write_text("version = 1\nname = = 3")
    code, _, err = kd("check", "bad.toml")
    assert code == 2
    assert "bad.toml is not valid TOML" in err
    assert "line 2" in err


def test_a_broken_plugin_is_named(kd, place):
    (place / "broken.py").write_text("1 / 0\n")
    code, _, err = kd("check", "small.toml", "--plugin", "broken.py")
    assert code == 2
    assert "broken.py" in err
    assert "ZeroDivisionError" in err


def test_a_plugin_of_the_command_line_acts_and_is_part_of_the_run(kd, place):
    (place / "mine.py").write_text(
        "import kdengine\n"
        "kdengine_hook_version = 1\n"
        "@kdengine.hookimpl\n"
        "def kdengine_on_fit_end(context):\n"
        "    open('acted', 'a').write(context.name + '\\n')\n"
    )
    code, out, _ = kd(
        "run", "small.toml", "--plugin", "mine.py", "--trace-hooks", "--set", "train.epochs=1", "--out", "r"
    )
    assert code == 0
    assert (place / "acted").read_text() == "student\n"
    assert "mine: fit_end 1 calls" in out
    code, out, _ = kd("check", place / "r" / "recipe.toml")
    assert "fit_end: mine (0)" in out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (NonFiniteError("the loss is [red]nan[/red]"), 1, "the loss is [red]nan[/red]"),
        (RuntimeError("oh"), 1, "Run again with --debug"),
        (OSError(28, "No space left on device", "runs/x"), 2, "no space left on device: runs/x"),
        (PermissionError(13, "Permission denied", "runs"), 2, "permission denied: runs"),
    ],
)
def test_an_exception_becomes_an_exit_code(capsys, error, code, said):
    assert main.explain(error) == code
    assert said in capsys.readouterr().err


def test_debug_shows_the_traceback(kd):
    _, _, err = kd("run", "digists", "--debug")
    assert "Traceback" in err
    assert "did you mean 'digits'" in err


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from kdengine.cli.main import invoke; invoke(['--help']); invoke(['run', '--help']);"
        "heavy = {'torch', 'torchvision', 'matplotlib', 'sklearn', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "check" in done.stdout


def test_the_exit_code_reaches_the_shell_and_a_reader_may_leave(process):
    assert process("run", "digists").returncode == 2
    version = process("--version")
    assert version.returncode == 0
    assert version.stdout.startswith("kdengine ")


def test_without_a_command_comes_the_help(kd):
    code, out, _ = kd()
    assert code == 0
    assert "Usage: kdengine" in out


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_cache_that_cannot_be_written_is_told_before_anything_is_made(kd, place, monkeypatch, command):
    (place / "file").write_text("")
    monkeypatch.setenv("KDENGINE_CACHE", str(place / "file" / "cache"))
    code, _, err = kd(command, "small.toml")
    assert code == 2
    assert "name a folder that can be written with KDENGINE_CACHE" in err
    assert "resume" not in err
    assert not list(place.glob("runs/*"))
