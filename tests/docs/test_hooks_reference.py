"""The hook reference against the code: every hook, every context, every decision."""

import inspect
import re

import pytest

from kdengine.api import contexts, hooks
from kdengine.api.contexts import Decision
from kdengine.host.dispatch import PREFIX, ROLES
from kdengine.testing import tiny_run
from tests.docs.markdown import DOCS, ROOT, blocks, run_python

REFERENCE = DOCS / "hooks.md"
TEXT = REFERENCE.read_text(encoding="utf-8")
CONTEXTS = [value for name, value in vars(contexts).items() if isinstance(value, type) and name.endswith("Context")]


def heading(name):
    """The heading of a hook: its exact signature, without self."""
    signature = inspect.signature(getattr(hooks.HookSpecs, name))
    own = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "self"])
    return f"### `{name}{str(own).replace(chr(39), '')}`\n"


def section(title):
    """What stands below a heading, up to the next."""
    return re.split(r"^##", TEXT.split(title, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("name", hooks.CONTRIBUTIONS + hooks.CALLBACKS)
def test_every_hook_is_documented_with_its_exact_signature(name):
    assert heading(name) in TEXT


@pytest.mark.parametrize("name", hooks.CALLBACKS)
def test_every_callback_states_its_role(name):
    role = ROLES[name.removeprefix(PREFIX)]
    assert section(heading(name)).lstrip().startswith(f"*{role.capitalize()}.*")
    spec = inspect.getdoc(getattr(hooks.HookSpecs, name))
    assert spec.lower().startswith(role)


def test_the_reference_names_no_hook_that_is_not_there():
    named = re.findall(r"^### `(kdengine_\w+)\(", TEXT, flags=re.MULTILINE)
    assert named == [*hooks.CONTRIBUTIONS, *hooks.CALLBACKS]


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda context: context.__name__)
def test_every_attribute_of_a_context_is_documented(context):
    rows = re.findall(r"^\| `(\w+)` \|", section(f"### `{context.__name__}`\n"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(context.__slots__)


def test_every_decision_is_documented():
    rows = re.findall(r"^\| `(\w+)` \|", section("## Decisions\n"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(Decision.__members__)


@pytest.mark.parametrize("name", hooks.CONTRIBUTIONS + hooks.CALLBACKS)
def test_every_hook_is_named_in_a_test(name):
    short = name.removeprefix(PREFIX).removeprefix("kdengine_")
    mentions = re.compile(rf"\b{name}\b|\"{short}\"|def test_\w*{short}|{short}=")
    tests = [path for path in (ROOT / "tests").glob("**/test_*.py") if "docs" not in path.parts]
    assert any(mentions.search(path.read_text(encoding="utf-8")) for path in tests)


def test_the_examples_run(tmp_path):
    examples = [block for block in blocks(REFERENCE) if block.language == "python"]
    assert len(examples) == 5
    for block in examples:
        namespace = {}
        run_python(block, REFERENCE, namespace)
        if "plugin" in namespace:
            file = tmp_path / f"{type(namespace['plugin']).__name__}.py"
            file.write_text(block.text, encoding="utf-8")
            for plugin in (namespace["plugin"], str(file)):
                assert tiny_run(plugins=[plugin]).result.steps == (3 if "Budget" in namespace else 4)
        else:
            assert "kdengine_loggers" in namespace
