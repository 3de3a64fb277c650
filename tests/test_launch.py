"""What the launcher's variables say, and what is said where they make no sense."""

import pytest

from kdengine import _launch
from kdengine.api import ConfigurationError, processes
from kdengine.cli import several

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    def set_to(**values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize("values", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": " 1 ", "RANK": "x"}])
def test_one_process_needs_nothing_else(environment, values):
    environment(**values)
    assert _launch.launched() == (0, 1, 0)
    assert processes.join() is processes.ALONE


def test_a_launched_process_knows_its_place(environment):
    environment(**WHOLE)
    assert _launch.launched() == (1, 2, 1)
    assert (several.rank(), several.is_several(), several.is_main()) == (1, True, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0'"),
        ({"RANK": ""}, "RANK is not set"),
        ({"RANK": "2"}, "RANK is '2', expected a whole number from 0 to 1"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"LOCAL_RANK": "gpu0"}, "LOCAL_RANK is 'gpu0'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
    ],
)
def test_what_cannot_be_is_told_with_its_variable_and_with_torchrun(environment, changes, said):
    environment(**WHOLE | changes)
    with pytest.raises(ConfigurationError, match=said) as caught:
        processes.join()
    assert "torchrun --nproc-per-node" in str(caught.value)


@pytest.mark.parametrize("changes", [{"WORLD_SIZE": "abc"}, {"RANK": "7"}])
def test_a_command_that_joins_nobody_works_and_speaks(environment, changes):
    environment(**WHOLE | changes)
    assert (several.rank(), several.is_several(), several.is_main()) == (0, False, True)


@pytest.mark.parametrize(
    "error",
    [
        "The server socket has failed to listen on any local network address. port: 29500, name: EADDRINUSE",
        "bind: Address already in use\nException raised from bind at socket.cpp:1\nframe #0: c10::Error",
    ],
)
def test_a_port_in_use_is_told_without_a_stack(environment, monkeypatch, error):
    def refuse(**_):
        raise RuntimeError(error)

    environment(**WHOLE)
    monkeypatch.setattr(processes.dist, "init_process_group", refuse)
    with pytest.raises(ConfigurationError, match=r"port 29500 is in use .*--master-port") as caught:
        processes.join()
    assert "frame" not in str(caught.value)
    assert several.explain(caught.value) is caught.value, "who has not met the others explains on its own"
