"""The moving average is what is measured, exported and handed out, whatever the student's weights are made of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import kdengine
from kdengine.api.copies import copied
from kdengine.losses import CE
from kdengine.teachers.ema import EMA
from tests.engine.common import CLASSES, INPUTS, engine, items, mlp, sgd

DECAY = 0.8


def loader():
    return kdengine.loader(items(), 8)


def fixed():
    return kdengine.loader(items(), 8, shuffle=False)


def of_norm(make):
    def student():
        model = mlp()
        make(model[0])
        return model

    return student


def pruned(layer):
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.fixture
def quantized():
    quantization = pytest.importorskip("torch.ao.quantization")

    def make():
        model = mlp().train()
        model.qconfig = quantization.get_default_qat_qconfig("x86")
        return quantization.prepare_qat(model)

    return make


MADE = {
    "weight_norm": of_norm(parametrizations.weight_norm),
    "weight_norm by a hook": of_norm(nn.utils.weight_norm),
    "spectral_norm by a hook": of_norm(nn.utils.spectral_norm),
    "orthogonal": of_norm(parametrizations.orthogonal),
    "pruned": of_norm(pruned),
    "compiled": lambda: torch.compile(mlp(), backend="eager"),
    "batch norm": lambda: nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)),
}


class Trace:
    """Follows the parameters by hand, as the formula of the moving average says."""

    kdengine_hook_version = 1

    def __init__(self) -> None:
        self.mean: dict[str, torch.Tensor] = {}

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        now = {name: p.detach().clone() for name, p in context.fit.student.named_parameters()}
        self.mean = {name: DECAY * self.mean[name] + (1 - DECAY) * p for name, p in now.items()} if self.mean else now


def check(student, reference):
    """Fit with an average; what it says is what a model with the averaged parameters says."""
    trace = Trace()
    trained = engine(student, plugins=[trace], ema=DECAY, metrics={"top1": "top1"})
    result = trained.fit(loader(), fixed(), epochs=2)
    for name, parameter in result.student.named_parameters():
        torch.testing.assert_close(parameter.detach(), trace.mean[name], rtol=1e-5, atol=1e-7)
    reference.load_state_dict({**student.state_dict(), **trace.mean}, strict=False)
    inputs, labels = items()[:]
    with torch.no_grad():
        expected, got = reference.eval()(inputs), result.student.eval()(inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert result.metrics["top1"] == pytest.approx((got.argmax(-1) == labels).float().mean().item())
    assert not torch.allclose(got, copied(student).eval()(inputs), rtol=1e-3)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_average_is_that_of_the_formula_whatever_the_weights_are_made_of(make):
    torch.manual_seed(3)
    student = make()
    student(items()[:8][0])  # what is computed has a graph from here on
    check(student, copied(student))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_average_of_a_model_that_learns_its_quantization_follows_its_observers(quantized):
    trained = engine(quantized(), ema=DECAY, metrics={"top1": "top1"})
    result = trained.fit(loader(), fixed(), epochs=1)
    inputs, labels = items()[:]
    assert result.metrics["top1"] == pytest.approx((result.student.eval()(inputs).argmax(-1) == labels).float().mean())
    assert engine(quantized(), EMA(0.9)).fit(loader(), epochs=1).steps == 4


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm by a hook", "pruned"])
def test_a_teacher_that_is_the_students_average_may_have_computed_weights(name):
    source = EMA(decay=0.5, warmup=False)
    student = MADE[name]()
    engine(student, source).fit(loader(), epochs=1)
    inputs = items()[:][0]
    reference = copied(student)
    reference.load_state_dict(source.module.state_dict())
    torch.testing.assert_close(source.module(inputs), reference.eval()(inputs))


def test_a_copy_of_a_model_without_shapes_is_refused_before_training(tmp_path):
    lazy = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, CLASSES))
    for options in ({"ema": 0.9}, {"teacher": EMA(0.9)}, {"out": tmp_path / "run"}):
        with pytest.raises(kdengine.ConfigurationError, match=r"'0\.weight' of the Seq.* no shape yet.*run a batch"):
            engine(copy.deepcopy(lazy), options.pop("teacher", None), **options).fit(loader(), epochs=1)
    assert engine(lazy).fit(loader(), epochs=1).steps == 4


def test_a_student_that_cannot_be_copied_is_refused_with_the_way_out():
    class Uncopyable(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle a lock")

    student = Uncopyable(INPUTS, CLASSES)
    with pytest.raises(kdengine.ConfigurationError, match=r"Uncopyable cannot be copied: .* a lock; leave ema"):
        engine(student, ema=0.9).fit(loader(), epochs=1)


def test_pruning_in_the_middle_of_a_fit_is_no_average_of_other_parameters():
    class Prune:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            if context.step == 2:
                pruned(context.fit.student[0])

    square = nn.Sequential(nn.Linear(INPUTS, INPUTS, bias=False), nn.Linear(INPUTS, CLASSES))
    with pytest.raises(kdengine.ConfigurationError, match=r"'0\.weight', '0\.weight_orig' came or went during the fit"):
        engine(square, plugins=[Prune()], ema=0.9).fit(loader(), epochs=1)


def test_the_average_is_had_without_a_run_directory_and_measured_as_the_fit_did():
    student = mlp()
    trained = engine(student, ema=0.95, metrics={"margin": lambda logits, labels: logits.max(-1).values})
    assert trained.averaged is None
    result = trained.fit(loader(), fixed(), epochs=2)
    assert result.student is trained.averaged
    assert result.student is not student
    assert trained.evaluate(fixed()) == result.metrics
    raw = trained.evaluate(fixed(), averaged=False)
    assert raw["margin"] == pytest.approx(student(items()[:][0]).max(-1).values.mean().item(), rel=1e-5)
    assert raw["margin"] != pytest.approx(result.metrics["margin"], rel=1e-3)


def test_without_an_average_the_result_has_the_student_itself():
    student = mlp()
    trained = engine(student)
    assert trained.fit(loader(), epochs=1).student is student
    assert trained.averaged is None


def test_steps_of_ones_own_loop_keep_an_average_too():
    trained = engine(mlp(), ema=0.5, metrics={"margin": lambda logits, labels: logits.max(-1).values})
    batches = list(loader())
    for batch in batches:
        trained.train_step([batch])
    assert trained.evaluate(fixed()) != trained.evaluate(fixed(), averaged=False)


@pytest.mark.filterwarnings("ignore:Engine.objective")
def test_an_objective_in_a_foreign_loop_keeps_no_average_and_measures_the_student():
    student = mlp()
    trained = engine(student, losses=[CE()], weights={}, ema=0.9, metrics={"top1": "top1"})
    optimizer = sgd(list(student.named_parameters()))
    for batch in loader():
        trained.objective(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert trained.averaged is None
    assert trained.evaluate(fixed()) == trained.evaluate(fixed(), averaged=False)


def test_a_teacher_put_into_training_mode_is_noticed_in_a_foreign_loop_and_an_evaluation():
    teacher = mlp(32, dropout=0.5)
    trained = engine(mlp(), teacher, metrics={"agreement": "agreement"})
    batch = next(iter(loader()))
    trained.objective(batch)
    teacher.train()
    for act in (lambda: trained.objective(batch), lambda: trained.evaluate([batch])):
        with pytest.raises(kdengine.ConfigurationError, match="put into training mode"):
            act()


def test_after_a_refusal_an_evaluation_freezes_the_teacher_again():
    teacher = mlp(32, dropout=0.5)
    trained = engine(mlp(), teacher, optimizer=lambda named: None, metrics={"agreement": "agreement"})
    with pytest.raises(kdengine.ConfigurationError, match="optimizer factory"):
        trained.fit(loader(), epochs=1)
    assert teacher.training
    trained.evaluate(fixed())
    assert not teacher.training
