"""The table of methods against the losses, their recipes and what was measured."""

import pytest

from kdengine.host import Host
from kdengine.losses import kdengine_losses
from kdengine.recipe.load import Source, read
from kdengine.recipe.plan import make_plan
from kdengine.teachers import kdengine_teachers
from tests.benchmarks import methods
from tests.docs import method_table
from tests.docs.markdown import blocks

MEASURED = method_table.read()
TEXT = method_table.PAGE.read_text(encoding="utf-8")


def test_the_table_is_what_was_measured():
    assert method_table.rendered(TEXT, MEASURED) == TEXT


def test_every_method_is_measured():
    named = {*kdengine_losses(), *kdengine_teachers()} - {"ce", "cached"}
    assert named == set(methods.recipes()) == set(MEASURED["methods"])


@pytest.mark.parametrize("name", MEASURED["methods"])
def test_no_method_ends_below_the_student_alone(name):
    figures = MEASURED["methods"][name]
    alone = figures.get("alone", MEASURED["alone"])
    assert figures["top1"]["n"] == alone["n"] == MEASURED["seeds"] >= 3
    assert figures["top1"]["mean"] >= alone["mean"] - alone["sd"]


def test_the_recipes_of_the_page_are_sound():
    found = [block for block in blocks(method_table.PAGE) if block.language == "toml"]
    assert found
    for block in found:
        source = Source(block.title, block.text, method_table.DOCS)
        recipe, problems = read(source)
        assert make_plan(recipe, Host(autoload=False), source, problems).recipe.losses
