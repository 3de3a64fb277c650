from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache as cache_calls
from pathlib import Path
from typing import Any

import pytest
import torch

from kdengine.host import Host
from kdengine.recipe.load import Source, load
from kdengine.recipe.plan import Plan, make_plan
from kdengine.recipe.run import Options, run

SMALL = """
version = 1
name = "small"
data = { use = "digits", batch_size = 256, labelled = 0.2 }
teacher = { use = "mlp", hidden = [32], train = { epochs = 2, lr = 0.01 } }
student = { use = "mlp", hidden = [8] }
losses.kd = { weight = 0.9, temperature = 2.0 }
losses.ce = { weight = 0.1 }
optimizer = { use = "adam", lr = 0.01 }
train = { epochs = 2 }
evaluate = { metrics = ["top1", "agreement"] }
loggers = []
baseline = true
"""
"""A whole run in a fraction of a second: five steps an epoch."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher cache of the test's own."""
    monkeypatch.setenv("KDENGINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teachers"


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: the machine is shared, and the teacher's cache is keyed by the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def digits_read_once():
    """Scikit-learn parses its digits at every call; the data set copies them."""
    datasets = pytest.importorskip("sklearn.datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", cache_calls(datasets.load_digits))
        yield


PlanMaker = Callable[..., Plan]


@pytest.fixture
def plan_of() -> PlanMaker:
    """A checked plan of a recipe's text."""

    def make(text: str = SMALL, *overrides: str, plugins: Sequence[Any] = ()) -> Plan:
        source = Source("test.toml", text, Path("recipes"))
        return make_plan(load(source, overrides), Host(plugins, autoload=False), source)

    return make


@pytest.fixture
def carry_out(plan_of: PlanMaker, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A whole run of a recipe's text; returns its summary."""

    def make(
        text: str = SMALL,
        *overrides: str,
        out: Path | None = None,
        plugins: Sequence[Any] = (),
        seeds: int | None = None,
        resume: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> dict[str, Any]:
        options = Options(out=out or tmp_path / "run", seeds=seeds, resume=resume, say=say)
        return run(plan_of(text, *overrides, plugins=plugins), options)

    return make
