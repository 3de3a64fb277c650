"""What changes in a frozen teacher is named in the first step, and what may change can be exempted."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.guard import FrozenGuard, tensor_hashes
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import KD
from kdengine.teachers.ensemble import Ensemble
from tests.engine.common import CLASSES, INPUTS, engine, flat, items, mlp


class Router(nn.Module):
    """Counts what it routes, also in evaluation mode."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("tokens_per_expert", torch.zeros(4), persistent=persistent)

    def forward(self, inputs):
        self.tokens_per_expert += 1
        return inputs


def counting(persistent: bool = True) -> nn.Module:
    return nn.Sequential(mlp(16), Router(persistent))


class Source(kdengine.TeacherSource):
    """A source of one's own, that leaves freezing to the engine."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def modules(self):
        return [self.module]

    def forward(self, batch):
        return self.module(batch.inputs)


def loader():
    return kdengine.loader(items(), 8)


class At:
    """Does something at a hook, and counts steps."""

    kdengine_hook_version = 1

    def __init__(self, act=lambda context: None) -> None:
        self.act, self.steps = act, 0

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        self.steps += 1
        self.act(context)


def test_a_buffer_that_the_teacher_writes_is_named_before_the_first_update():
    student = mlp()
    before = flat(student)
    with pytest.raises(kdengine.ConfigurationError, match=r"'1\.tokens_per_expert' changed.*its own forward.*ignore_"):
        engine(student, counting()).fit(loader(), epochs=50)
    assert torch.equal(flat(student), before)


def test_what_was_refused_in_the_first_step_can_be_mended_and_begun_again_in_the_same_directory(tmp_path):
    with pytest.raises(kdengine.ConfigurationError, match="tokens_per_expert"):
        engine(teacher=counting(), out=tmp_path / "run").fit(loader(), epochs=1)
    mended = LiveTeacher(counting(), ignore_buffers=["*.tokens_per_expert"])
    assert engine(teacher=mended, out=tmp_path / "run").fit(loader(), epochs=1).steps == 4


@pytest.mark.parametrize(
    "teacher",
    [
        LiveTeacher(counting(), ignore_buffers=["1.tokens_per_expert"]),
        LiveTeacher(counting(), ignore_buffers="*.tokens_per_*"),
        counting(persistent=False),
        [mlp(), LiveTeacher(counting(), ignore_buffers=["*.tokens_per_expert"])],
        Ensemble([mlp(), Ensemble([mlp(), LiveTeacher(counting(), ignore_buffers=["1.tokens_per_expert"])])]),
    ],
    ids=["by name", "by pattern", "not persistent", "in a list", "in an ensemble of ensembles"],
)
def test_a_counter_may_be_exempted(teacher):
    assert engine(teacher=teacher).fit(loader(), epochs=1).steps == 4


def test_a_source_of_ones_own_may_name_its_counters():
    source = Source(counting())
    source.ignore_buffers = ("1.tokens_per_expert",)
    assert engine(teacher=source).fit(loader(), epochs=1).steps == 4


def test_an_exemption_that_fits_no_buffer_is_refused():
    with pytest.raises(
        kdengine.ConfigurationError, match=r"'tokens_per_expert', which is no buffer.*1\.tokens_per_exp"
    ):
        engine(teacher=LiveTeacher(counting(), ignore_buffers=["tokens_per_expert"])).fit(loader(), epochs=1)
    with pytest.raises(kdengine.ConfigurationError, match="no buffer"):  # weights are not exempted
        engine(teacher=LiveTeacher(mlp(), ignore_buffers=["0.weight"])).fit(loader(), epochs=1)


def test_what_else_writes_to_the_teacher_is_found_after_the_first_step_and_named():
    def change(context):
        with torch.no_grad():
            context.fit.teacher[0][3].bias += 1e-3

    plugin = At(change)
    with pytest.raises(kdengine.ConfigurationError, match=r"teacher's '3\.bias' changed.*something writes"):
        engine(plugins=[plugin]).fit(loader(), epochs=3)
    assert plugin.steps == 1


def test_what_changes_later_is_found_at_the_end_and_named():
    def change(context):
        if context.step == 3:
            context.fit.teacher[0][0].weight.data.mul_(1.5)

    with pytest.raises(kdengine.ConfigurationError, match=r"teacher's '0\.weight' changed"):
        engine(plugins=[At(change)]).fit(loader(), epochs=2)


def test_a_parameter_that_is_set_to_train_is_named():
    plugin = At(lambda context: context.fit.teacher[0][0].requires_grad_())
    with pytest.raises(kdengine.ConfigurationError, match=r"'0\.weight', '0\.bias' was set to require"):
        engine(plugins=[plugin]).fit(loader(), epochs=1)


def test_a_buffer_that_the_first_forward_makes_is_watched_from_there_on():
    class Lazy(nn.Linear):
        def forward(self, x):
            if not hasattr(self, "table"):
                self.register_buffer("table", torch.zeros(()))
            return super().forward(x) + self.table

    assert engine(teacher=Lazy(INPUTS, CLASSES)).fit(loader(), epochs=2).status == "finished"

    def change(context):
        context.fit.teacher[0].table.add_(1.0)

    with pytest.raises(kdengine.ConfigurationError, match="'table' changed"):
        engine(teacher=Lazy(INPUTS, CLASSES), plugins=[At(change)]).fit(loader(), epochs=1)


def test_a_buffer_that_appears_is_named():
    def change(context):
        context.fit.teacher[0].register_buffer("cache", torch.ones(1))

    with pytest.raises(kdengine.ConfigurationError, match="'cache' changed"):
        engine(plugins=[At(change)]).fit(loader(), epochs=1)


def test_a_source_of_ones_own_is_frozen_by_the_engine():
    module = nn.Sequential(nn.Linear(INPUTS, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, CLASSES)).train()
    before = copy.deepcopy(module.state_dict())
    engine(teacher=Source(module)).fit(loader(), epochs=1)
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_teacher_in_the_memory_of_the_student_is_refused():
    student, teacher = mlp(), mlp()
    teacher.load_state_dict(student.state_dict(), assign=True)  # other parameters, the same memory
    with pytest.raises(kdengine.ConfigurationError, match="share 4 parameter tensors"):
        engine(student, teacher).fit(loader(), epochs=1)


def test_a_buffer_that_both_models_hold_is_no_sharing():
    constant = torch.ones(INPUTS)
    student, teacher = mlp(), mlp(16)
    for model in (student, teacher):
        model.register_buffer("constant", constant)
    assert engine(student, teacher).fit(loader(), epochs=1).steps == 4


class Hiding(nn.Module):
    """A teacher that calls modules that it does not hold."""

    def __init__(self, *hidden: nn.Module) -> None:
        super().__init__()
        self.hidden = list(hidden)
        self.head = nn.Linear(CLASSES, CLASSES)

    def forward(self, inputs):
        for module in self.hidden:
            inputs = module(inputs)
        return self.head(inputs)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_teacher_that_hides_the_student_is_noticed_in_the_first_step(compiled):
    student = mlp()
    before = flat(student)
    if compiled:
        student.compile(backend="eager")
    with pytest.raises(kdengine.ConfigurationError, match="runs modules of the student that train"):
        engine(student, Hiding(student)).fit(loader(), epochs=1)
    assert torch.equal(flat(student), before)
    assert not any(module._forward_pre_hooks for module in student.modules())


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_student_trains():
    assert engine(torch.jit.script(mlp())).fit(loader(), epochs=1).steps == 4


def test_a_frozen_part_of_the_student_may_serve_the_teacher():
    student = nn.Sequential(nn.Linear(INPUTS, CLASSES).requires_grad_(False), nn.Linear(CLASSES, CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine(student, Hiding(student[0])).fit(loader(), epochs=1).steps == 4


def test_a_source_that_evolves_may_run_the_student():
    class Itself(kdengine.TeacherSource):
        evolving = True

        def __init__(self, module):
            self.module = module

        @torch.no_grad()
        def forward(self, batch):
            return self.module(batch.inputs)

    student = mlp()
    trained = engine(student, Itself(student), losses={"kd": KD()}, weights={})
    assert trained.fit(loader(), epochs=1).steps == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.arange(4.0), 0.1, 2, torch.quint8),
        lambda: torch.tensor([1 + 2j, 3.0]),
        lambda: torch.tensor([True, False]),
        lambda: torch.zeros(0),
        lambda: torch.arange(6.0).view(2, 3).t(),
    ],
    ids=["sparse", "quantized", "complex", "bool", "empty", "transposed"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_of_every_kind_are_compared_by_their_bits(make):
    tensor = make()
    hashes = tensor_hashes({"same": tensor, "again": tensor.clone(), "other": torch.full((7,), 3.5)})
    assert hashes["same"] == hashes["again"] != hashes["other"]


def test_the_names_of_a_wrapped_teacher_are_those_inside():
    teacher = nn.Sequential(nn.Linear(1, 1), torch.compile(nn.Linear(1, 1), backend="eager"))
    guard = FrozenGuard([teacher.requires_grad_(False)])
    teacher[1].bias.data.add_(1.0)
    with pytest.raises(kdengine.ConfigurationError, match=r"'1\.bias' changed"):
        guard.confirm()
