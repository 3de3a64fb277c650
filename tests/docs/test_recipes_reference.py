"""The recipe reference against the code: every key, every component, every schedule."""

import re

import pytest

from kdengine.host import KINDS, Host
from kdengine.recipe import load
from kdengine.recipe.load import Source
from kdengine.recipe.plan import DETERMINISTIC, make_plan
from kdengine.recipe.rates import IN_EPOCHS, NAMES
from kdengine.recipe.schema import Recipe
from kdengine.recipe.signature import arguments
from tests.docs.markdown import DOCS, blocks
from tests.docs.recipe_tables import TABLES, rows

REFERENCE = DOCS / "recipes.md"
TEXT = REFERENCE.read_text(encoding="utf-8")


def section(title):
    """What stands below a heading, up to the next of any level."""
    return re.split(r"^##", TEXT.split(f"{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("title", TABLES)
def test_every_key_is_documented_with_type_default_and_meaning(title):
    shown = [line for line in section(f"### {title}").splitlines() if line.startswith("| `")]
    assert shown == rows(TABLES[title])


@pytest.mark.parametrize("kind", KINDS)
def test_every_builtin_component_is_listed(kind):
    (row,) = re.findall(rf"^\| {kind} \| (.*) \|$", section("## Components"), flags=re.MULTILINE)
    offered = {component.name for component in Host(autoload=False).components(kind)}
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(offered)


def test_every_learning_rate_schedule_is_listed_with_its_class():
    shown = re.findall(r"^\| `(\w+)` \| (\w+) \|", section("## Learning-rate schedules"), flags=re.MULTILINE)
    assert shown[0] == ("use", "Class")
    assert dict(shown[1:]) == NAMES
    assert all(f"`{name}`" in section("## Learning-rate schedules").split("|", 1)[0] for name in IN_EPOCHS)


@pytest.mark.parametrize("component", Host(autoload=False).components("schedules"), ids=lambda item: item.name)
def test_every_schedule_is_listed_with_its_arguments(component):
    table = section("## Schedules of scalars")
    (row,) = re.findall(rf"^\| `{component.name}` \| ([^|]*) \|", table, flags=re.MULTILINE)
    known = arguments(component.load())
    assert re.findall(r"`(\w+)`", row) == list(known)
    given = dict(re.findall(r"`(\w+)` = `?([^`,]+)`?", row))
    for name, argument in known.items():
        assert argument.required == (name not in given)
        if not argument.required:
            default = argument.default
            shown = f"{default:g}" if isinstance(default, float) else "none" if default is None else default
            assert given[name].strip('"') == shown


def test_every_transform_that_a_test_input_keeps_is_named():
    known = {component.name for component in Host(autoload=False).components("transforms")}
    assert all(f"`{name}`" in section("## Transforms") for name in known.intersection(DETERMINISTIC))


def test_every_key_that_may_change_on_resume_is_named():
    (sentence,) = re.findall(r"these keys may change: (.*?)Anything else", section("## Resume"), flags=re.DOTALL)
    assert re.findall(r"`([\w.]+)`", sentence) == [".".join(key) for key in Recipe.FLEXIBLE]


@pytest.mark.parametrize("block", [b for b in blocks(REFERENCE) if b.title], ids=lambda block: block.title)
def test_an_example_is_a_recipe(block, tmp_path):
    source = Source(block.title, block.text, tmp_path)
    recipe = load.load(source)
    plan = make_plan(recipe, Host(autoload=False), source)
    assert plan.recipe.name == block.title.removesuffix(".toml")
