"""A module that holds its plugin as an object: it acts, or is refused; nothing is accepted and never called."""

import importlib

import pytest

import kdengine
from kdengine.api.errors import ConfigurationError, PluginError
from kdengine.host import Host

HEAD = "import kdengine\nkdengine_hook_version = 1\n"
BUDGET = """
class Budget:
    kdengine_hook_version = 1

    def __init__(self, steps=3):
        self.steps = steps

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        return kdengine.Decision.STOP if context >= self.steps else None
"""
HOOK = "@kdengine.hookimpl\ndef kdengine_on_fit_end(context): ...\n"


@pytest.fixture
def file(tmp_path):
    def write(body, head=HEAD):
        path = tmp_path / "mine.py"
        path.write_text(head + body)
        return str(path)

    return write


@pytest.mark.parametrize("head", ["import kdengine\n", HEAD], ids=["as documented", "with the line once advised"])
def test_the_object_that_a_file_names_plugin_is_called(file, host, head):
    made = host(file(BUDGET + "plugin = Budget(steps=2)\n", head))
    assert made.order() == ["step_end: mine (0)"]
    assert made.dispatch().step_end(2) == (kdengine.Decision.STOP,)
    assert made.dispatch().step_end(1) == ()


def test_the_object_of_an_installed_module_and_of_a_dotted_name_is_called(install, module, host):
    install("focal", BUDGET + "plugin = Budget()\n")
    module("fake_package.callbacks", BUDGET + "plugin = Budget()\n")
    assert host("focal").order() == ["step_end: focal (0)"]
    assert host("fake_package.callbacks").order() == ["step_end: callbacks (0)"]
    assert host(importlib.import_module("fake_package.callbacks")).order() == ["step_end: callbacks (0)"]


def test_the_object_may_name_itself_and_keep_state(file, host):
    body = BUDGET.replace("    def __init__", "    kdengine_name = 'budget'\n\n    def __init__", 1)
    body += "    def state_dict(self): return {}\n    def load_state_dict(self, state): ...\nplugin = Budget()\n"
    made = host(file(body))
    assert made.acting[0].name == "budget"
    assert list(made.dispatch().stateful) == ["budget"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (BUDGET, r"class Budget are never called.*plugin = Budget\(\)"),
        (BUDGET + "plugin = Budget\n", r"'plugin' is a class.*plugin = Budget\(\)"),
        (BUDGET + "budget = Budget()\n", r"'budget' are never called.*plugin = budget"),
        (BUDGET + "plugin = Budget()\n" + HOOK, "hooks of its own and an object named 'plugin'"),
    ],
    ids=["class alone", "class named plugin", "object of another name", "both"],
)
def test_hooks_that_would_never_be_called_are_refused_with_what_to_write(file, host, body, said):
    with pytest.raises(PluginError, match=said):
        host(file(body))


def test_one_plugin_needs_no_list_around_it(file, install):
    path = file(BUDGET + "plugin = Budget()\n")
    install("focal", HOOK)
    for given, name in ((path, "mine"), ("focal>=1", "focal"), (raising(), "pruning")):
        assert [plugin.name for plugin in Host(given).acting] == [name]


def test_a_plugin_without_any_hook_is_told(file, host):
    assert "has no hooks" in host(file("")).warned[0]


@pytest.mark.parametrize(
    "body", [HOOK + BUDGET, HOOK + "plugin = 'a name'\n", HOOK], ids=["a class beside", "another plugin", "hooks"]
)
def test_a_module_with_hooks_of_its_own_acts_without_a_word(file, host, body):
    made = host(file(body))
    assert made.order() == ["fit_end: mine (0)"]
    assert made.warned == []


def test_a_class_of_another_module_is_none_of_the_files_business(file, module, host):
    module("fake_callbacks", BUDGET)
    assert host(file("from fake_callbacks import Budget\n" + HOOK)).warned == []


def test_what_a_module_only_offers_is_offered_beside_a_class_with_hooks(install, host):
    install("focal", BUDGET + "@kdengine.hookimpl\ndef kdengine_losses(): return {'focal': lambda: 1}\n")
    made = host()
    assert made.component("losses", "focal").load()() == 1
    assert made.warned == []


class Pruned(Exception):
    pass


def raising(**attributes):
    @kdengine.hookimpl
    def kdengine_on_evaluate_end(self, context):
        raise Pruned("enough")

    body = {"kdengine_hook_version": 1, "kdengine_on_evaluate_end": kdengine_on_evaluate_end, **attributes}
    return type("Pruning", (), body)()


@pytest.mark.parametrize("passes", [Pruned, (KeyError, Pruned), (Exception,)])
def test_an_exception_that_a_plugin_raises_on_purpose_passes_as_it_is(host, passes):
    with pytest.raises(Pruned, match="enough"):
        host(raising(kdengine_passes=passes)).dispatch().evaluate_end(None)


@pytest.mark.parametrize("attributes", [{}, {"kdengine_passes": KeyError}])
def test_any_other_exception_is_that_of_the_plugin(host, attributes):
    with pytest.raises(PluginError, match=r"plugin 'pruning' .* failed in kdengine_on_evaluate_end"):
        host(raising(**attributes)).dispatch().evaluate_end(None)


@pytest.mark.parametrize("passes", ["Pruned", (Pruned, "KeyError"), 3])
def test_what_passes_must_be_exceptions(host, passes):
    with pytest.raises(PluginError, match=r"kdengine_passes holds .*expected a class of exceptions"):
        host(raising(kdengine_passes=passes))


@pytest.mark.parametrize("call", ["import sys; sys.exit(1)", "raise SystemExit", "exit('bye')"])
def test_a_plugin_that_exits_at_its_import_does_not_end_the_process(file, install, module, host, call):
    install("quits", call)
    made = host()
    made.components("losses")
    assert "sys.exit(" in made.warned[0]
    with pytest.raises(PluginError, match=r"plugin 'mine' .*sys\.exit"):
        host(file(call))
    module("fake_package.quits", call)
    with pytest.raises(PluginError, match=r"'fake_package.quits' .*sys\.exit"):
        host("fake_package.quits")


def test_a_component_that_exits_at_its_import_does_not_end_the_process(install, module, host):
    module("fake_heavy", "raise SystemExit(2)")
    install("heavy", "@kdengine.hookimpl\ndef kdengine_losses(): return {'heavy': 'fake_heavy:Loss'}\n")
    with pytest.raises(PluginError, match=r"'fake_heavy|fake_heavy:Loss cannot be loaded.*sys\.exit"):
        host().component("losses", "heavy").load()


def test_a_distribution_without_an_entry_point_is_told_apart_from_none(install, host, site):
    install("noep")
    points = next(site.glob("kd_noep*.dist-info")) / "entry_points.txt"
    points.unlink()
    with pytest.raises(ConfigurationError, match=r"kd-noep 1\.2 is installed, but declares no entry point.*'kdengine'"):
        host("kd-noep")
    with pytest.raises(ConfigurationError, match=r"kd-noep 1\.2 is installed, but declares no entry point"):
        host().component("losses", "kd_noep:focal")
    points.write_text("[kdengine.plugins]\nnoep = fake_kd_noep\n")
    with pytest.raises(ConfigurationError, match=r"there are some in 'kdengine\.plugins'"):
        host("kd-noep")
