from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from kdengine.api import ConfigurationError
from kdengine.recipe.load import Source, apply_override, differences, dump, find, load, read, shipped
from kdengine.recipe.problems import RecipeError

from .conftest import SMALL


def source(text: str) -> Source:
    return Source("mine.toml", text, Path("recipes"))


def complaints(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(source(text), overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_every_problem_is_told_with_line_key_value_and_nearest_name():
    text = """version = 1
data = { use = "digits", batch_size = "64", workers = -1 }
student = { hidden = [8] }
losses.kd.weight = "heavy"
[losses.ce]
weight = true
[trian]
epochs = 1
[train]
epoch = 3
precision = "bf61"
[teacher]
use = "mlp"
train = { epochs = 1, leraning_rate = 3 }
"""
    assert complaints(text) == [
        "line 2: data.batch_size = '64': expected a whole number",
        "line 2: data.workers = -1: expected a number greater than or equal to 0",
        "line 3: student.use: this key is required",
        "line 4: losses.kd.weight = 'heavy': expected a number or a table",
        "line 6: losses.ce.weight = True: expected a number or a table",
        "line 7: trian: unknown key; did you mean 'train'?",
        "line 9: train.epochs: this key is required",
        "line 10: train.epoch: unknown key; did you mean 'epochs'?",
        "line 11: train.precision = 'bf61': expected 'fp32', 'bf16' or 'fp16'",
        "line 14: teacher.train.leraning_rate: unknown key; known: batch_size, epochs, label_smoothing, labelled, "
        "lr, lr_schedule, optimizer, seed",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epochs", "'3'"),
        ("train.epochs", "true"),
        ("train.epochs", "3.0"),
        ("train.epochs", "0"),
        ("train.clip", "'1'"),
        ("train.clip", "nan"),
        ("train.compile", "1"),
        ("baseline", "'yes'"),
        ("name", "3"),
        ("name", "'a/b'"),
        ("evaluate.metrics", "'top1'"),
        ("evaluate.metrics", "[]"),
        ("evaluate.metrics", "[1]"),
        ("data.labelled", "0.0"),
        ("data.labelled", "1.5"),
        ("data.transforms", "[3]"),
        ("train.classes", "['a']"),
        ("losses", "{}"),
        ("losses.kd", "3"),
        ("student", "'mlp'"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_problem_at_its_key(key, value):
    assert [line.partition(":")[0] for line in complaints(SMALL, f"{key}={value}")] != []
    with pytest.raises(RecipeError) as caught:
        load(source(SMALL), [f"{key}={value}"])
    assert len(caught.value.problems) == 1
    assert ".".join(caught.value.problems[0].path).startswith(key)


def test_a_loss_may_be_called_like_a_type():
    text = SMALL.replace("losses.ce", "losses.float")
    assert complaints(text, "losses.float.weight='x'")[0].startswith("line 8: losses.float.weight = 'x'")


def test_a_message_of_a_validator_is_a_plain_sentence():
    assert complaints(SMALL, "name=.hidden") == [
        "line 3: name = '.hidden': expected a name that can be a directory's: no slash, no leading dot"
    ]


def test_invalid_toml_is_told_with_its_line():
    with pytest.raises(ConfigurationError, match=r"mine\.toml is not valid TOML: .*line 3"):
        load(source("version = 1\n\nname = = 3\n"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "a recipe begins with version = 1"),
        ("version = 2", "a newer kdengine"),
        ("version = 0", "expected version = 1"),
        ("version = '1'", "expected version = 1"),
        ("version = true", "expected version = 1"),
        ("version = 1.0", "expected version = 1"),
    ],
)
def test_another_version_is_told_before_anything_else(line, told):
    lines = complaints(SMALL.replace("version = 1", line) + "\nnonsense = 1\n")
    assert len(lines) == 1
    assert told in lines[0]


def test_overrides_take_toml_values_and_bare_words():
    tree = tomllib.loads(SMALL)
    for override in (
        "train.epochs=5",
        "losses.kd.temperature = 3.5",
        "data.use=image_folder",
        "data.root=some/where",
        "train.compile=true",
        "student.hidden=[1, 2]",
        'description="a = b"',
        "losses.kd.weight={ schedule = 'linear', start = 1, end = 0 }",
        "teacher.train.optimizer.use=sgd",
        "empty=",
    ):
        apply_override(tree, override)
    assert tree["train"] == {"epochs": 5, "compile": True}
    assert tree["losses"]["kd"]["temperature"] == 3.5
    assert (tree["data"]["use"], tree["data"]["root"]) == ("image_folder", "some/where")
    assert tree["student"]["hidden"] == [1, 2]
    assert tree["description"] == "a = b"
    assert tree["losses"]["kd"]["weight"]["schedule"] == "linear"
    assert tree["teacher"]["train"]["optimizer"] == {"use": "sgd"}
    assert tree["empty"] == ""


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3", ".=1", ""])
def test_an_override_without_key_or_value_is_refused(override):
    with pytest.raises(ConfigurationError, match="--set expects key=value"):
        apply_override({}, override)


def test_an_override_below_what_is_no_table_is_refused():
    with pytest.raises(ConfigurationError, match=r"train\.epochs is no table"):
        apply_override({"train": {"epochs": 1}}, "train.epochs.more=1")


def test_a_recipe_is_found_by_path_or_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my digits.toml").write_text(shipped()["digits"].replace('name = "digits"', ""))
    assert find("my digits.toml").folder == Path()
    assert load("my digits.toml").name == "my digits"
    assert load("digits").name == "digits"
    with pytest.raises(ConfigurationError, match="did you mean 'digits'"):
        find("digist")
    with pytest.raises(ConfigurationError, match=r"no recipe file .*absent\.toml"):
        find("absent.toml")


def test_a_shipped_recipe_without_a_name_is_called_as_it_is_shipped():
    text = shipped()["digits"].replace('name = "digits"', "")
    assert load(Source("digits", text, Path())).name == "digits"


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_survives_being_written_and_read(name):
    recipe = load(name)
    again = load(Source("again", dump(recipe), Path()))
    assert again == recipe
    assert differences(recipe, again) == []


def test_differences_leave_out_what_may_change():
    before = load(source(SMALL))
    free = ["train.epochs=9", "data.workers=2", "train.device=cpu", "train.keep=5", "train.log_every=1"]
    assert differences(before, load(source(SMALL), [*free, "loggers=['console']", "train.checkpoint_every=3"])) == []
    changed = differences(before, load(source(SMALL), ["losses.kd.temperature=3.0", "train.seed=4", "train.clip=1.0"]))
    assert changed == [
        "losses.kd.temperature was 2.0, is 3.0",
        "train.clip was None, is 1.0",
        "train.seed was 0, is 4",
    ]


def test_read_gives_what_is_right_beside_the_problems():
    recipe, problems = read(source(SMALL), ["train.epochs=many", "baseline=3", "data.transforms=[1]", "trian=1"])
    assert [problem.path for problem in problems] == [
        ("data", "transforms", "0"),
        ("train", "epochs"),
        ("baseline",),
        ("trian",),
    ]
    assert recipe.student.arguments == {"hidden": [8]}


def test_read_raises_when_too_little_is_right():
    with pytest.raises(RecipeError, match="this key is required"):
        read(source("version = 1\ntrain = { epochs = 1 }"))


GOOD = 'version = 1\ndata.use = "digits"\nstudent.use = "mlp"\nlosses.ce = {}\ntrain.epochs = 1\n'


@pytest.mark.parametrize("text", [GOOD, GOOD.replace("\n", "\r\n")])
def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path, text):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load(tmp_path / "bom.toml").train.epochs == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD.encode("utf-16"), "found UTF-16"),
        (b"\xfe\xff" + GOOD.encode("utf-16-be"), "found UTF-16"),
        (GOOD.encode("utf-16-le"), "bytes of 0, as in UTF-16"),
        (GOOD.encode("utf-32"), "found UTF-32"),
        (GOOD.replace("digits", "ziffern-größe").encode("latin-1"), "the byte 0xf6 in line 2"),
    ],
    ids=["utf-16", "big endian", "without a mark", "utf-32", "latin-1"],
)
def test_another_encoding_is_named_with_what_to_do(tmp_path, content, said):
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"r\.toml is no recipe: .*{said}.*save the file as UTF-8"):
        load(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('data.root = "C:\\Users\\me"', "single quotes, as in 'C:"),
        ('data.root = "C:\\data"', "single quotes"),
        ('data.root = "..\\my data"', "single quotes"),
        ("data.use = \N{LEFT DOUBLE QUOTATION MARK}digits\N{RIGHT DOUBLE QUOTATION MARK}", "typographic quotes"),
        ("data.use\N{NO-BREAK SPACE}= 'digits'", "no plain one"),
    ],
)
def test_what_toml_cannot_read_is_told_with_what_to_write(tmp_path, line, said):
    (tmp_path / "r.toml").write_text(f"version = 1\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"is not valid TOML.*line 2") as caught:
        load(tmp_path / "r.toml")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('data.root = "C:\\new\\train"', "data.root"),
        ('data.root = "data\\train"', "data.root"),
        ('student.checkpoint = "runs\\big\\r.pth"', "student.checkpoint"),
        ('plugins = ["plugins\\new.py"]', "plugins.0"),
        ('student.weights = "D:\\test"', "student.weights"),
    ],
)
def test_a_path_in_which_an_escape_was_read_is_a_problem_with_its_line(tmp_path, line, key):
    (tmp_path / "r.toml").write_text(f"{GOOD}{line}\n" if "plugins" not in line else f"{line}\n{GOOD}")
    with pytest.raises(RecipeError, match="a path with a control character") as caught:
        load(tmp_path / "r.toml")
    assert f"{key} = " in str(caught.value)
    assert "line " in str(caught.value)


def test_text_that_is_no_path_may_hold_a_line_break(tmp_path):
    (tmp_path / "r.toml").write_text(f'{GOOD}student.prompt = "one\\ntwo"\ndescription = "a\\tb"\n')
    assert load(tmp_path / "r.toml").student.arguments["prompt"] == "one\ntwo"


def test_a_recipe_is_found_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.toml").write_text(GOOD)
    assert load("~/r.toml").train.epochs == 1
