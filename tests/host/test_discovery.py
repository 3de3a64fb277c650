import importlib
import sys
from pathlib import Path

import pytest

import kdengine
from kdengine.api.errors import ConfigurationError, PluginError
from kdengine.host import Host

from .conftest import acting, offers

STEP_END = "@kdengine.hookimpl\ndef kdengine_on_step_end(context):\n    pass\n"


def test_making_a_host_imports_no_installed_plugin(install, host):
    name = install("focal", offers(focal=1))
    made = host()
    assert made.acting == ()
    (record,) = [plugin for plugin in made.plugins() if plugin.name == "focal"]
    assert (record.origin, record.distribution, record.version) == ("installed", "kd-focal", "1.2")
    assert (record.source, record.target, record.acting, record.disabled) == (name, None, False, False)
    assert name not in sys.modules


def test_named_plugin_acts(install, host):
    name = install("focal", STEP_END)
    (record,) = host("focal").acting
    assert (record.name, record.acting, record.target) == ("focal", True, sys.modules[name])
    assert record.title == "plugin 'focal' (kd-focal 1.2)"


@pytest.mark.parametrize("wanted", ["focal>=1.2", "focal == 1.*", "focal<2,>1", "Focal~=1.1"])
def test_version_specifier_that_is_met(install, host, wanted):
    install("focal", STEP_END)
    assert host(wanted).acting[0].version == "1.2"


def test_prerelease_satisfies_a_specifier(install, host):
    install("focal", STEP_END, version="2.0.dev1")
    assert host("focal>=1.2").acting[0].version == "2.0.dev1"


def test_version_specifier_that_is_not_met_tells_found_and_wanted(install, host):
    name = install("focal", STEP_END)
    with pytest.raises(ConfigurationError) as caught:
        host("focal>=2")
    assert "plugin 'focal' (kd-focal 1.2) is installed, but 'focal>=2' is wanted" in str(caught.value)
    assert "pip install 'kd-focal>=2'" in str(caught.value)
    assert name not in sys.modules


def test_unknown_plugin_shows_the_nearest_and_how_to_install(install, host):
    install("focal")
    with pytest.raises(ConfigurationError, match=r"'focl' is not installed; did you mean 'focal'\?.*pip install focl"):
        host("focl")
    with pytest.raises(ConfigurationError, match="the distribution of that name installs focal"):
        host("kd-focal")


@pytest.mark.parametrize("text", ["", "focal>>1", "focal[x]", "focal; python_version > '3'"])
def test_text_that_names_no_plugin(install, host, text):
    install("focal")
    with pytest.raises(ConfigurationError, match=r"names no plugin.*expected 'name', 'name>=1\.2'"):
        host(text)


def test_named_plugin_that_is_broken_is_an_error_with_its_cause(install, host):
    name = install("broken", "import fake_nowhere")
    with pytest.raises(PluginError, match=r"plugin 'broken' \(kd-broken 1.2\) cannot be imported: Module") as caught:
        host("broken")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert name not in sys.modules


def test_two_distributions_that_install_one_name(install, host):
    install("focal", STEP_END, distribution="kd-one")
    install("focal", STEP_END, distribution="kd-two")
    with pytest.raises(PluginError, match=r"kd-(one|two) 1.2.* and .*kd-(one|two) 1.2.*uninstall one"):
        host("focal")
    made = host()
    made.components("losses")
    assert len(made.warned) == 1


def test_entry_point_whose_name_a_plugin_cannot_have(install, host):
    install("builtin", offers(x=1))
    made = host()
    made.components("losses")
    assert "stands for kdengine's own components" in made.warned[0]


def test_disabled_and_named_is_an_error(install, host):
    install("focal", STEP_END)
    with pytest.raises(ConfigurationError, match="named among the plugins and switched off"):
        host("focal", disabled=["focal"])
    with pytest.raises(ConfigurationError, match="named among the plugins and switched off"):
        host(acting("probe", "step_end"), disabled=["Probe"])


def test_disabled_name_that_nobody_has_is_a_warning(install, host):
    install("focal")
    made = host(disabled=["focl"])
    assert made.warned == ["no plugin is named 'focl', so none is switched off; did you mean 'focal'?"]


@pytest.mark.parametrize("name", ["builtin", "fake_builtin"])
def test_builtins_stay(host, name):
    with pytest.raises(ConfigurationError, match="cannot be switched off"):
        host(disabled=[name])
    if name != "builtin":
        with pytest.raises(ConfigurationError, match="always there"):
            host(name)


def test_listing_marks_builtins_acting_disabled_and_broken(install, host):
    install("broken", "raise ValueError('x')")
    install("off")
    install("on", STEP_END)
    made = host("on", disabled=["off"])
    made.components("losses")
    records = {plugin.name: plugin for plugin in made.plugins()}
    assert records["builtin"].origin == "builtin"
    assert records["builtin"].source == "fake_builtin"
    assert (records["on"].acting, records["off"].disabled) == (True, True)
    assert "ValueError: x" in records["broken"].error
    assert records["on"].error is None


def test_listing_without_autoload_marks_installed_plugins_as_disabled(install, host):
    install("focal")
    assert [plugin.disabled for plugin in host(autoload=False).plugins() if plugin.name == "focal"] == [True]


def test_module_by_dotted_name(module, host):
    module("fake_package.callbacks", STEP_END)
    (record,) = host("fake_package.callbacks").acting
    assert (record.name, record.origin, record.source) == ("callbacks", "object", "fake_package.callbacks")


def test_dotted_name_of_no_module(host):
    with pytest.raises(ConfigurationError, match=r"no installed plugin and no module is named 'fake_package\.nothing'"):
        host("fake_package.nothing")
    with pytest.raises(ConfigurationError, match="only an installed plugin has a version"):
        host("fake_package.nothing>=1")


def test_module_that_fails_to_import(module, host):
    module("fake_package.bad", "import fake_nowhere")
    module("fake_package.worse", "1 / 0")
    with pytest.raises(PluginError, match=r"'fake_package.bad' cannot be imported: .*fake_nowhere"):
        host("fake_package.bad")
    with pytest.raises(PluginError, match=r"'fake_package.worse' cannot be imported: ZeroDivisionError"):
        host("fake_package.worse")


def test_module_object_and_its_version(module, host):
    module("fake_single", "__version__ = '0.3'\n" + STEP_END)
    made = host(importlib.import_module("fake_single"))
    assert made.acting[0].name == "fake_single"
    assert made.versions() == {"fake_single": "0.3"}


def test_module_of_an_installed_plugin_is_that_plugin(install, host):
    name = install("focal", STEP_END)
    made = host(importlib.import_module(name))
    assert made.acting[0].title == "plugin 'focal' (kd-focal 1.2)"
    assert made.versions() == {"focal": "1.2"}
    assert made.warned == []


def test_object_is_named_after_its_class(host):
    class EarlyStop:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_end(self): ...

    made = host(EarlyStop())
    assert made.order() == ["step_end: earlystop (0)"]
    assert made.acting[0].origin == "object"


def test_object_hides_an_installed_plugin_of_its_name_and_says_so(install, host):
    install("probe", offers(x=1))
    made = host(acting("probe", "step_end"))
    assert "hides the installed plugin of that name" in made.warned[0]
    assert [item.name for item in made.components("losses")] == ["ce", "kd"]


def test_plugin_given_twice_under_different_forms(install, host):
    name = install("focal", STEP_END)
    with pytest.raises(ConfigurationError, match="already there"):
        host("focal", importlib.import_module(name))


def test_default_warning_is_pythons_own(install):
    install("broken", "1 / 0")
    with pytest.warns(UserWarning, match="an installed plugin is left out: plugin 'broken'"):
        Host().components("losses")


def test_the_builtins_of_kdengine_are_valid_and_named_once(monkeypatch, host):
    monkeypatch.undo()
    made = host(autoload=False)
    assert all(plugin.name == "builtin" for plugin in made.plugins())
    for kind in ("losses", "models", "datasets"):
        names = [item.name for item in made.components(kind)]
        assert len(names) == len(set(names))


def test_path_objects_are_files(tmp_path, host):
    (tmp_path / "mine.py").write_text("import kdengine\nkdengine_hook_version = 1\n" + STEP_END)
    assert host(Path(tmp_path / "mine.py")).acting[0].name == "mine"
