import sys

import pytest

from kdengine import hookimpl
from kdengine.api.errors import ConfigurationError, PluginError
from kdengine.host import KINDS, Host

from .conftest import acting, offers


def test_kinds_are_those_of_the_contribution_hooks():
    assert KINDS == (
        "losses", "schedules", "loggers", "metrics", "models",
        "datasets", "transforms", "optimizers", "teachers", "projectors",
    )  # fmt: skip


def test_plain_name_of_a_builtin_imports_no_installed_plugin(install, host):
    name = install("focal", offers(focal="focal"))
    found = host().component("losses", "kd")
    assert (found.qualified, found.load()()) == ("builtin:kd", "builtin kd")
    assert found.distribution == "kdengine"
    assert name not in sys.modules


def test_qualified_name_imports_that_plugin_only(install, host):
    focal, other = install("focal", offers(focal="focal")), install("other", offers(x=1))
    found = host().component("losses", "focal:focal")
    assert (found.kind, found.name, found.plugin) == ("losses", "focal", "focal")
    assert (found.distribution, found.version, found.load()()) == ("kd-focal", "1.2", "focal")
    assert focal in sys.modules
    assert other not in sys.modules


def test_plain_name_that_no_builtin_has_imports_installed_plugins(install, host):
    focal = install("focal", offers(focal="focal"))
    assert host().component("losses", "focal").qualified == "focal:focal"
    assert focal in sys.modules


@pytest.mark.parametrize("spelling", ["soft-kd:x", "soft_kd:x", "Soft_KD:x"])
def test_a_plugin_answers_to_every_spelling_of_its_name(install, host, spelling):
    install("soft_kd", offers(x=1))
    assert host().component("losses", spelling).qualified == "soft_kd:x"


def test_installed_plugin_never_shadows_a_builtin_even_when_it_is_imported(install, host):
    install("other", offers(kd="other kd"))
    made = host()
    assert made.component("losses", "other:kd").load()() == "other kd"
    assert made.component("losses", "kd").load()() == "builtin kd"


def test_acting_plugin_that_claims_a_builtin_name_is_ambiguous_only_when_it_is_used(install, host):
    install("other", offers(kd="other kd"))
    made = host("other")
    assert made.component("losses", "ce").qualified == "builtin:ce"
    with pytest.raises(ConfigurationError) as caught:
        made.component("losses", "kd")
    message = str(caught.value)
    assert "'kd' among losses is claimed by 2 plugins" in message
    assert "builtin (kdengine " in message
    assert 'write use = "builtin:kd"' in message
    assert "plugin 'other' (kd-other 1.2): write use = \"other:kd\"" in message
    assert made.component("losses", "builtin:kd").load()() == "builtin kd"
    assert made.component("losses", "other:kd").load()() == "other kd"


def test_two_installed_claims_are_ambiguous(install, host):
    install("a", offers(x=1))
    install("b", offers(x=2))
    with pytest.raises(ConfigurationError, match=r'(?s)use = "a:x".*use = "b:x"'):
        host().component("losses", "x")


def test_acting_claim_goes_before_an_installed_one(install, host):
    install("a", offers(x=1))
    install("b", offers(x=2))
    assert host("b").component("losses", "x").qualified == "b:x"


def test_unknown_name_shows_the_nearest_and_broken_plugins_that_might_have_it(install, host):
    install("broken", "raise RuntimeError('no compiler')")
    install("off", offers(focl=1))
    made = host(disabled=["off"])
    with pytest.raises(ConfigurationError) as caught:
        made.component("losses", "cee")
    message = str(caught.value)
    assert "no plugin offers 'cee' among losses; did you mean 'ce'?" in message
    assert "not searched, because it is broken: plugin 'broken' (kd-broken 1.2)" in message
    assert "RuntimeError: no compiler" in message
    assert "not searched, because it is switched off: off" in message


def test_unknown_kind_shows_the_nearest(host):
    with pytest.raises(ConfigurationError, match="'loses' is no kind of component; did you mean 'losses'"):
        host().component("loses", "kd")
    with pytest.raises(ConfigurationError, match="no kind"):
        host().components("loses")


@pytest.mark.parametrize("owner", ["builtin", "focal"])
def test_name_that_the_asked_plugin_lacks(install, host, owner):
    install("focal", offers(kdx=1))
    with pytest.raises(ConfigurationError, match=rf"{owner}.* offers no 'kdy' among losses; did you mean 'kd"):
        host().component("losses", f"{owner}:kdy")


def test_unknown_plugin_shows_the_nearest_and_how_to_install(install, host):
    install("focal")
    with pytest.raises(ConfigurationError, match=r"'focl' is not installed; did you mean 'focal'.*pip install focl"):
        host().component("losses", "focl:x")


def test_broken_plugin_that_is_not_asked_for_is_one_warning(install, host):
    install("broken", "raise RuntimeError('no compiler')")
    install("focal", offers(focal=1))
    made = host()
    for _ in range(2):
        assert made.component("losses", "focal").qualified == "focal:focal"
        assert [item.name for item in made.components("losses")] == ["ce", "focal", "kd"]
    (warning,) = made.warned
    assert "plugin 'broken' (kd-broken 1.2) cannot be imported: RuntimeError: no compiler" in warning


def test_broken_plugin_that_is_asked_for_is_an_error_with_its_cause(install, host):
    install("broken", "raise RuntimeError('no compiler')")
    made = host()
    made.components("losses")
    for each in (made, host()):
        with pytest.raises(PluginError, match="RuntimeError: no compiler") as caught:
            each.component("losses", "broken:x")
        assert caught.value.plugin == "broken"
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_invalid_installed_plugin_is_a_warning_too(install, host):
    install("old", offers(x=1), head="import kdengine\n")
    made = host()
    assert [item.name for item in made.components("losses")] == ["ce", "kd"]
    assert "kdengine_hook_version is missing" in made.warned[0]
    with pytest.raises(PluginError, match="kdengine_hook_version is missing"):
        host().component("losses", "old:x")


def test_failing_contribution_is_a_warning_unless_asked(install, host):
    install("bad", "@kdengine.hookimpl\ndef kdengine_losses():\n    raise KeyError('gpu')\n")
    made = host()
    assert [item.name for item in made.components("losses")] == ["ce", "kd"]
    assert len(made.warned) == 1
    with pytest.raises(PluginError, match=r"plugin 'bad' \(kd-bad 1.2\) failed in kdengine_losses: KeyError"):
        made.component("losses", "bad:x")
    with pytest.raises(PluginError, match="failed in kdengine_losses"):
        host("bad").components("losses")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("['kd']", "returned a list; expected a mapping"),
        ("None", "returned a NoneType; expected a mapping"),
        ("{1: print}", "the name 1; expected a non-empty string without ':'"),
        ("{'a:b': print}", "the name 'a:b'; expected"),
        ("{'a': 3}", "a int for 'a'; expected a class, a factory or 'module:attribute'"),
        ("{'a': 'torch.nn.Linear'}", "'torch.nn.Linear' for 'a'; expected 'module:attribute'"),
    ],
)
def test_contribution_of_another_type_is_attributed(install, host, value, message):
    install("bad", f"@kdengine.hookimpl\ndef kdengine_losses():\n    return {value}\n")
    with pytest.raises(PluginError) as caught:
        host().component("losses", "bad:a")
    assert str(caught.value).startswith("plugin 'bad' (kd-bad 1.2): kdengine_losses returned")
    assert message in str(caught.value)
    assert caught.value.hook == "kdengine_losses"


def test_component_by_address_is_imported_only_when_loaded(install, module, host):
    install("lazy", "@kdengine.hookimpl\ndef kdengine_losses():\n    return {'x': 'fake_heavy:Outer.Inner'}\n")
    module("fake_heavy", "class Outer:\n    class Inner: pass\n", head="")
    found = host().component("losses", "x")
    assert "fake_heavy" not in sys.modules
    assert found.load().__name__ == "Inner"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("fake_nowhere:x", "ModuleNotFoundError: No module named 'fake_nowhere'"),
        ("math:nothing", "AttributeError: module 'math' has no attribute 'nothing'"),
        ("math:pi", "it is a float; expected a class or a function"),
    ],
)
def test_component_that_cannot_be_loaded_is_attributed(install, host, address, reason):
    install("lazy", f"@kdengine.hookimpl\ndef kdengine_losses():\n    return {{'x': {address!r}}}\n")
    with pytest.raises(PluginError) as caught:
        host().component("losses", "x").load()
    assert f"plugin 'lazy' (kd-lazy 1.2) offers 'x' among losses, but {address} cannot be loaded" in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.plugin == "lazy"


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("torchvision", "pip install 'kdengine[vision]'"),
        ("sklearn", "pip install 'kdengine[demo]'"),
        ("matplotlib", "pip install 'kdengine[report]'"),
        ("jinja2", "pip install 'kdengine[report]'"),
        ("tensorboard", "pip install 'tensorboard'"),
    ],
)
def test_missing_extra_is_named(module, monkeypatch, host, package, command):
    module("fake_builtin", "@kdengine.hookimpl\ndef kdengine_models():\n    return {'x': 'fake_needs:x'}\n")
    module("fake_needs", f"import {package}.sub", head="")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PluginError) as caught:
        host().component("models", "x").load()
    assert command in str(caught.value)
    assert "builtin (kdengine" in str(caught.value)


def test_disabled_plugin_neither_offers_nor_acts(install, host):
    name = install("focal", offers(focal=1))
    made = host(disabled=["focal"])
    assert [item.name for item in made.components("losses")] == ["ce", "kd"]
    with pytest.raises(ConfigurationError, match=r"'focal' is switched off \(--no-plugin focal\)"):
        made.component("losses", "focal:focal")
    assert name not in sys.modules


@pytest.mark.parametrize("value", ["1", "true"])
def test_environment_switches_installed_plugins_off_unless_named(install, host, monkeypatch, value):
    monkeypatch.setenv("KDENGINE_DISABLE_PLUGIN_AUTOLOAD", value)
    install("focal", offers(focal=1))
    assert [item.name for item in host().components("losses")] == ["ce", "kd"]
    with pytest.raises(ConfigurationError, match="installed plugins were not searched: KDENGINE_DISABLE"):
        host().component("losses", "focal")
    with pytest.raises(ConfigurationError, match=r'name it: plugins = \["focal"\]'):
        host().component("losses", "focal:focal")
    assert host("focal").component("losses", "focal").qualified == "focal:focal"
    assert Host(autoload=True).component("losses", "focal").qualified == "focal:focal"


def test_autoload_argument_overrides_the_environment(install, host, monkeypatch):
    install("focal", offers(focal=1))
    assert [item.name for item in host(autoload=False).components("losses")] == ["ce", "kd"]


def test_contribution_is_called_once_per_host(host):
    calls = []

    class Offer:
        kdengine_hook_version = 1

    Offer.kdengine_losses = hookimpl(lambda self: calls.append(1) or {"x": print})
    made = host(Offer())
    for _ in range(3):
        made.component("losses", "x")
        made.components("losses")
    assert calls == [1]


def test_versions_record_what_acts_and_what_was_used(install, host):
    install("focal", offers(focal=1), version="3.1")
    install("hint", offers(hint=1), version="0.2")
    install("idle", offers(idle=1))
    made = host("hint", acting("mine", "step_end"))
    assert made.versions() == {"hint": "0.2", "mine": "unknown"}
    made.components("losses")
    made.component("losses", "kd")
    made.component("losses", "focal")
    assert made.versions() == {"hint": "0.2", "mine": "unknown", "focal": "3.1"}
