import pluggy
import pytest

import kdengine
from kdengine import hookimpl
from kdengine.api.errors import ConfigurationError, PluginError
from kdengine.api.hooks import PRIORITY

from .conftest import acting, offers


def refused(host, **attributes) -> str:
    """The message with which a plugin of these attributes is refused."""
    attributes = {"kdengine_hook_version": 1, **attributes}
    with pytest.raises(PluginError) as caught:
        host(type("Bad", (), attributes)())
    assert str(caught.value).startswith(f"plugin 'bad' ({__name__}.Bad) cannot be used:\n")
    assert caught.value.plugin == "bad"
    return str(caught.value)


def test_missing_hook_version_gives_the_line_to_add(host, module):
    assert "add this line to the class: kdengine_hook_version = 1" in refused(host, kdengine_hook_version=None)
    module("fake_old.mod", offers(x=1), head="import kdengine\n")
    with pytest.raises(PluginError, match="add this line to the module: kdengine_hook_version = 1"):
        host("fake_old.mod")


def test_newer_hook_version_says_to_upgrade_kdengine(host):
    message = refused(host, kdengine_hook_version=2)
    assert "written for hook version 2, but kdengine" in message
    assert "pip install -U kdengine" in message


def test_older_hook_version_says_to_upgrade_the_plugin(host, install):
    assert "port it to the present hooks" in refused(host, kdengine_hook_version=0)
    install("old", head="kdengine_hook_version = 0\n")
    with pytest.raises(PluginError, match="upgrade the plugin: pip install -U kd-old"):
        host("old")


@pytest.mark.parametrize("version", ["1", 1.0, True])
def test_hook_version_must_be_a_whole_number(host, version):
    assert f"kdengine_hook_version is {version!r}; expected a whole number" in refused(
        host, kdengine_hook_version=version
    )


def test_unknown_hook_shows_the_nearest(host):
    message = refused(host, kdengine_on_stepend=hookimpl(lambda self, context: None))
    assert "kdengine_on_stepend is no hook of kdengine; did you mean 'kdengine_on_step_end'?" in message


def test_unmarked_function_with_a_hooks_name(host):
    assert "kdengine_losses has a hook's name but is not marked; add @kdengine.hookimpl" in refused(
        host, kdengine_losses=lambda self: {}
    )


def test_unmarked_function_with_nearly_a_hooks_name(host):
    message = refused(host, kdengine_on_epoch_ends=lambda self, context: None)
    assert "kdengine_on_epoch_ends is no hook of kdengine; did you mean 'kdengine_on_epoch_end'?" in message


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, *, context: None, "has the keyword-only argument 'context', which is never passed"),
        (lambda self, ctx: None, "has the argument 'ctx'; expected context or nothing"),
        (lambda self, context, step: None, "has the argument 'step'; expected context or nothing"),
        (lambda self, context, cache=(): None, "has the argument 'cache'; expected context or nothing"),
        (lambda self, *args: None, "has the argument '*args'; expected context or nothing"),
        (lambda self, **kwargs: None, "has the argument '**kwargs'; expected context or nothing"),
        (lambda context: None, "is a method without self; write def kdengine_on_step_end(self, context)"),
        (lambda: None, "is a method without self"),
    ],
)
def test_callback_arguments(host, function, message):
    assert f"kdengine_on_step_end {message}" in refused(host, kdengine_on_step_end=hookimpl(function))


def test_contribution_takes_no_argument(host):
    message = refused(host, kdengine_losses=hookimpl(lambda self, context: {}))
    assert "kdengine_losses has the argument 'context'; expected no arguments" in message


@pytest.mark.parametrize("option", ["wrapper", "hookwrapper", "tryfirst", "trylast", "optionalhook", "specname"])
def test_options_of_pluggy_are_refused(host, option):
    if option in ("wrapper", "hookwrapper"):

        def function(self, context):
            yield

    else:

        def function(self, context):
            pass

    value = "kdengine_on_fit_end" if option == "specname" else True
    marked = pluggy.HookimplMarker("kdengine")(function, **{option: value})
    message = refused(host, kdengine_on_step_end=marked)
    assert f"kdengine_on_step_end uses pluggy's option {option}" in message
    assert "priority=" in message


async def coroutine(self, context): ...


async def async_generator(self, context):
    yield


def generator(self, context):
    yield


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (coroutine, "is async, but nobody would await it"),
        (async_generator, "is async"),
        (generator, "contains yield, so that calling it runs nothing"),
    ],
)
def test_functions_that_would_not_run_are_refused(host, function, message):
    def copy(self, context):
        return function(self, context)

    copy.__wrapped__ = function
    assert message in refused(host, kdengine_on_step_end=hookimpl(copy))


def test_priority_must_be_a_whole_number(host):
    marked = hookimpl(priority="first")(lambda self, context: None)
    assert "kdengine_on_step_end has priority='first'; expected a whole number" in refused(
        host, kdengine_on_step_end=marked
    )


def test_marked_callable_that_is_no_function(host):
    class Call:
        def __call__(self, context): ...

    assert "kdengine_on_step_end is a Call; a hook must be a function" in refused(
        host, kdengine_on_step_end=hookimpl(Call())
    )


def test_marker_above_staticmethod_is_refused_and_below_works(host):
    marked = hookimpl(staticmethod(lambda context: None))
    assert "has @staticmethod below @kdengine.hookimpl; write it above" in refused(host, kdengine_on_step_end=marked)
    seen = []
    good = staticmethod(hookimpl(lambda context: seen.append(context)))
    host(acting("good", kdengine_on_loss_terms=good)).dispatch().loss_terms(5)
    assert seen == [5]


def test_half_of_a_pair_of_state_methods(host):
    assert "it has state_dict, but no load_state_dict" in refused(host, state_dict=lambda self: {})
    assert "it has load_state_dict, but no state_dict" in refused(host, load_state_dict=lambda self, state: None)


def test_all_problems_are_told_at_once(host):
    message = refused(
        host,
        kdengine_hook_version=None,
        kdengine_on_stepend=hookimpl(lambda self, context: None),
        kdengine_losses=lambda self: {},
        kdengine_on_fit_end=hookimpl(lambda self, *, context: None),
    )
    assert len(message.splitlines()) == 5
    for part in ("hook_version", "stepend", "not marked", "keyword-only"):
        assert part in message


def test_properties_are_not_evaluated(host):
    class Careful:
        kdengine_hook_version = 1

        @property
        def costly(self):
            raise AssertionError("evaluated")

    host(Careful())


def test_class_in_place_of_an_instance(host, install):
    with pytest.raises(ConfigurationError, match=r"Stopper is a class; give an instance of it: plugins=\[Stopper\(\)"):
        host(type("Stopper", (), {"kdengine_hook_version": 1}))
    install("cls", "class Thing:\n    kdengine_hook_version = 1\n", target="fake_kd_cls:Thing")
    with pytest.raises(PluginError, match=r"it is a class, .* give an instance: Thing\(\)"):
        host("cls")


def test_same_object_twice(host):
    probe = acting("probe", "step_end")
    with pytest.raises(ConfigurationError, match=r"plugin 'probe' .* is already there as plugin 'probe'"):
        host(probe, probe)


def test_two_plugins_of_one_name(host):
    with pytest.raises(ConfigurationError, match=r"two plugins are named 'probe': .*set kdengine_name in one"):
        host(acting("probe", "step_end"), acting("probe", "fit_end"))


@pytest.mark.parametrize("name", ["builtin", "a:b", "", "my plugin", 3])
def test_names_that_a_plugin_cannot_have(host, name):
    with pytest.raises(ConfigurationError, match=r"cannot be a plugin under the name .* set kdengine_name"):
        host(acting(name, "step_end"))


@pytest.mark.parametrize("item", [None, 3, ["a"], {}])
def test_what_can_be_no_plugin(host, item):
    with pytest.raises(ConfigurationError, match="a plugin cannot be"):
        host(item)


def test_priority_attribute_is_the_one_of_the_api():
    assert getattr(kdengine.hookimpl(priority=4)(lambda: None), PRIORITY) == 4
