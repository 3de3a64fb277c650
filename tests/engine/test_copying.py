"""An engine can be copied and pickled before and after a fit; what cannot travel is said in words."""

from __future__ import annotations

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import CE, KD, Hint
from kdengine.teachers.cached import CachedTeacher
from kdengine.teachers.ema import EMA
from kdengine.teachers.peer import Peer
from tests.engine.common import engine, flat, items, mlp, sgd


def loader():
    return kdengine.loader(items(), 8)


def pickled(trained):
    return pickle.loads(pickle.dumps(trained))


class Counter:
    """Counts steps, and knows the engine that it serves."""

    kdengine_hook_version = 1

    def __init__(self) -> None:
        self.steps, self.engine = 0, None

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        self.steps += 1


WAYS = {"deepcopy": copy.deepcopy, "pickle": pickled}
ENGINES = {
    "plain": lambda folder: engine(seed=0),
    "a hint, an average, clipping": lambda folder: engine(
        losses={"kd": KD(kdengine.Linear(4.0, 1.0)), "hint": Hint("0", "0")}, weights={}, ema=0.9, clip=1.0, seed=0
    ),
    "an evolving teacher": lambda folder: engine(teacher=EMA(0.9), seed=0),
    "a peer": lambda folder: engine(teacher=Peer(mlp(16)), seed=0),
    "an ensemble": lambda folder: engine(teacher=[mlp(16), LiveTeacher(mlp(32), dtype=torch.float64)], seed=0),
    "a cache": lambda folder: engine(teacher=CachedTeacher(mlp(32), str(folder), items=32), seed=0),
    "named metrics and loggers": lambda folder: engine(metrics={"top1": "top1"}, loggers=["jsonl"], seed=0),
    "a plugin": lambda folder: engine(plugins=[Counter()], seed=0),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_a_copy_trains_like_the_original_and_apart_from_it(make, way, tmp_path):
    first = make(tmp_path / "logits")
    second = way(first)
    before = flat(second.student)
    result = first.fit(loader(), epochs=1)
    assert torch.equal(flat(second.student), before)
    assert second.fit(loader(), epochs=1).history == result.history
    assert torch.equal(flat(second.student), flat(first.student))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_copy_after_a_fit_measures_and_trains_on_as_the_original_does(way):
    first = engine(ema=0.9, seed=0, metrics={"top1": "top1", "agreement": "agreement"})
    first.fit(loader(), epochs=1)
    second = way(first)
    assert second.evaluate(loader()) == first.evaluate(loader())
    assert second.evaluate(loader(), averaged=False) == first.evaluate(loader(), averaged=False)
    assert second.fit(loader(), epochs=1).history == first.fit(loader(), epochs=1).history


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_optimizer_of_a_copy_holds_the_parameters_of_the_copy(way):
    student = mlp()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    first = engine(student, optimizer=optimizer, lr_scheduler=scheduler)
    second = way(first)
    held = {id(p) for group in second.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in second.student.parameters()}
    assert second.lr_scheduler.optimizer is second.optimizer
    assert second.fit(loader(), epochs=1).history == first.fit(loader(), epochs=1).history


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_plugin_that_knows_its_engine_knows_the_copy(way):
    plugin = Counter()
    first = plugin.engine = engine(plugins=[plugin])
    second = way(first)
    second.fit(loader(), epochs=1)
    (own,) = [item.target for item in second.host.acting]
    assert (own.steps, plugin.steps) == (4, 0)
    assert own.engine is second


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_models_with_computed_weights_are_copied():
    student, teacher = mlp(), mlp(32)
    for model in (student, teacher):
        nn.utils.weight_norm(model[0])
    first = engine(student, teacher, seed=0)
    assert copy.deepcopy(first).fit(loader(), epochs=1).history == first.fit(loader(), epochs=1).history


def test_a_shallow_copy_has_the_same_models_and_no_fit():
    first = engine()
    first.fit(loader(), epochs=1)
    second = copy.copy(first)
    assert second.student is first.student
    assert second._fit is None


class Odd:
    """Holds what neither copies nor pickles: an open file."""

    kdengine_hook_version = 1

    def __init__(self) -> None:
        self.file = sys.__stderr__.buffer

    @kdengine.hookimpl
    def kdengine_on_fit_end(self, context):
        pass


class Files(kdengine.Logger):
    """Logs into a file that is open."""

    def __init__(self) -> None:
        self.file = sys.__stderr__.buffer

    def log(self, record, *, step, kind):
        pass


@pytest.mark.parametrize(
    ("make", "ways", "said"),
    [
        (lambda: engine(optimizer=lambda named: sgd(named)), [pickled], r"Engine\(optimizer\).*in place of lambdas"),
        (lambda: engine(teacher=LiveTeacher(mlp(), transform=lambda x: x)), [pickled], r"Engine\(teacher\)"),
        (lambda: engine(batch=lambda item: item), [pickled], r"Engine\(batch\)"),
        (lambda: engine(plugins=[Odd()]), WAYS.values(), r"Engine\(plugins\)"),
        (lambda: engine(loggers=[Files()]), WAYS.values(), r"Engine\(loggers\)"),
        (lambda: engine(losses=[kdengine.from_callable(lambda s, t: s)], weights={}), [pickled], r"Engine\(losses\)"),
    ],
    ids=["a lambda", "in a teacher", "a reader", "a plugin", "a logger", "a criterion"],
)
def test_what_cannot_travel_is_named_by_its_argument(make, ways, said):
    for way in ways:
        with pytest.raises(kdengine.ConfigurationError, match=f"cannot be (copied|pickled): {said}"):
            way(make())


def test_a_copy_in_another_process_does_not_share_its_weights():
    from multiprocessing.reduction import ForkingPickler  # which sends tensors by shared memory

    first = engine(seed=0)
    second = pickle.loads(bytes(ForkingPickler.dumps(first)))
    before = flat(first.student)
    second.fit(loader(), epochs=1)
    assert torch.equal(flat(first.student), before)


def test_lambdas_are_copied_within_a_process():
    first = engine(losses={"kd": KD(), "ce": CE()}, weights={}, optimizer=lambda named: sgd(named), seed=0)
    assert copy.deepcopy(first).fit(loader(), epochs=1).history == first.fit(loader(), epochs=1).history


def test_a_student_of_a_class_without_a_name_cannot_be_pickled():
    class Local(nn.Linear):
        pass

    with pytest.raises(kdengine.ConfigurationError, match=r"Engine\(student\).*Local"):
        pickle.dumps(engine(Local(12, 5)))


def test_an_engine_is_not_copied_while_it_trains():
    class Copies(Counter):
        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            copy.deepcopy(self.engine)

    plugin = Copies()
    plugin.engine = engine(plugins=[plugin])
    with pytest.raises(kdengine.PluginError, match="while it trains"):
        plugin.engine.fit(loader(), epochs=1)


def test_a_plugin_module_travels_by_its_name():
    module = types.ModuleType("kd_travelling")
    exec(
        "import kdengine\nkdengine_hook_version = 1\n@kdengine.hookimpl\ndef kdengine_on_fit_end(): pass", vars(module)
    )
    with pytest.raises(kdengine.ConfigurationError, match="'kd_travelling' cannot travel"):
        pickled(engine(plugins=[module]))
    sys.modules["kd_travelling"] = module
    try:
        assert pickled(engine(plugins=[module])).host.order() == ["fit_end: kd_travelling (0)"]
    finally:
        del sys.modules["kd_travelling"]
