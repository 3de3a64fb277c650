"""What the listing commands show."""

import json
import tomllib

import pytest

from kdengine.recipe.load import load


def test_recipes_lists_those_that_are_shipped(kd):
    code, out, _ = kd("recipes")
    assert code == 0
    for name in ("digits", "cifar10"):
        assert any(line.startswith(name) for line in out.splitlines())


def test_new_copies_a_recipe_and_never_overwrites(kd, place):
    assert kd("new", "mine.toml", "--from", "digits")[0] == 0
    assert load(place / "mine.toml").student.use == "mlp"
    (place / "mine.toml").write_text("changed")
    code, _, err = kd("new", "mine.toml", "--from", "digits")
    assert code == 2
    assert "mine.toml is there already" in err
    assert (place / "mine.toml").read_text() == "changed"


def test_schema_describes_a_recipe(kd, place):
    properties = json.loads(kd("schema")[1])["properties"]
    assert {"version", "data", "student", "losses"} <= set(properties)
    kd("schema", "--out", "schema.json")
    assert json.loads((place / "schema.json").read_text())["properties"] == properties


def test_plugins_lists_builtins_and_those_that_act(kd, place):
    (place / "mine.py").write_text("kdengine_hook_version = 1\n")
    code, out, _ = kd("plugins", "--plugin", "mine.py", "--json")
    rows = {row["source"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["kdengine.losses"]["status"] == "offers components"
    assert rows["mine.py"]["status"] == "acting"
    assert "kdengine.losses" in kd("plugins")[1]


def test_show_tells_a_loss_with_its_formula_and_arguments(kd):
    for name in ("kd", "builtin:kd"):
        out = kd("plugins", "show", name)[1]
        assert "KL(softmax(t / T) || softmax(s / T))" in out
        assert "temperature: number or schedule, default 4.0" in out
        assert "T > 0." in out
    row = json.loads(kd("plugins", "show", "kd", "--json")[1])[0]
    assert row["arguments"][0] == {
        "name": "temperature", "type": "number or schedule", "required": False, "default": 4.0, "doc": "T > 0."
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["kd", "ce", "mlp", "digits", "adam", "top1", "console", "cosine", "linear", "mixup", "to_tensor"]
)
def test_the_recipe_table_can_be_pasted(kd, name):
    for row in json.loads(kd("plugins", "show", name, "--json")[1]):
        if "..." not in row["recipe"]:
            assert tomllib.loads(row["recipe"])


def test_show_tells_what_a_plugin_offers(kd, place):
    (place / "mine.py").write_text(
        '"""Losses of mine."""\n'
        "import kdengine\n"
        "kdengine_hook_version = 1\n"
        "@kdengine.hookimpl\n"
        "def kdengine_losses():\n"
        "    return {'mine': 'kdengine.losses.logits.kd:KD'}\n"
    )
    out = kd("plugins", "show", "mine", "--plugin", "mine.py")[1]
    assert "Losses of mine." in out
    assert "losses: mine" in out
    assert "mine:mine  (losses" in out
