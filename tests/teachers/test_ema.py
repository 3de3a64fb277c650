"""The average of the student as its teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import kdengine
from kdengine.losses import CE, KD, Hint
from kdengine.teachers.ema import EMA
from tests.engine.common import CLASSES, INPUTS, engine, flat, items, mlp


def with_statistics():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


class Course:
    """The student's tensors after every step, and what the teacher said at every step."""

    kdengine_hook_version = 1

    def __init__(self):
        self.states, self.logits = [], []

    def state(self, module):
        return {name: value.clone().double() for name, value in module.state_dict().items()}

    @kdengine.hookimpl
    def kdengine_on_fit_start(self, context):
        self.states.append(self.state(context.student))

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        self.states.append(self.state(context.fit.student))

    @kdengine.hookimpl
    def kdengine_on_teacher_output(self, context):
        self.logits.append((context.batch.inputs, context.output.logits.clone()))


def follow(source, student=None, **options):
    course = Course()
    trained = engine(student or with_statistics(), source, plugins=[course], **options)
    trained.fit(kdengine.loader(items(), 8), epochs=3)
    return course


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_is_that_of_the_paper_in_float64(warmup):
    source = EMA(decay=0.8, warmup=warmup)
    course = follow(source)
    assert len(course.states) == 13
    average = dict(course.states[0])
    for step, theta in enumerate(course.states[1:], start=1):
        alpha = min(1 - 1 / (step + 1), 0.8) if warmup else 0.8
        for name in average:
            whole = name.endswith("num_batches_tracked")
            average[name] = theta[name] if whole else alpha * average[name] + (1 - alpha) * theta[name]
    for name, value in source.module.state_dict().items():
        assert torch.allclose(value.double(), average[name], rtol=0, atol=1e-6), name


def test_with_warm_up_it_is_at_first_the_mean_of_all_weights_so_far():
    source = EMA(decay=0.999)
    course = follow(source)
    means = torch.stack([state["0.weight"] for state in course.states]).mean(dim=0)
    assert torch.allclose(source.module[0].weight.double(), means, rtol=0, atol=1e-6)


def test_the_first_step_is_taught_by_the_student_itself_in_evaluation_mode():
    student = mlp(dropout=0.5)
    twin = copy.deepcopy(student).eval()
    course = follow(EMA(), student)
    inputs, logits = course.logits[0]
    assert torch.equal(logits, twin(inputs))
    assert not torch.equal(course.logits[4][1], twin(course.logits[4][0]))


def test_the_average_takes_no_gradient_and_is_not_exported(tmp_path):
    source = EMA()
    trained = engine(teacher=source, out=tmp_path / "run")
    trained.fit(kdengine.loader(items(), 8), epochs=1)
    assert not any(parameter.requires_grad for parameter in source.module.parameters())
    assert len(trained._fit.parameters) == 4
    exported = kdengine.load_run(tmp_path / "run").student()
    assert torch.equal(exported["0.weight"], trained.student[0].weight)
    assert not torch.equal(exported["0.weight"], source.module[0].weight)


def test_every_fit_begins_with_a_new_average():
    source, student = EMA(decay=0.9), mlp()
    trained = engine(student, source)
    trained.fit(kdengine.loader(items(), 8), epochs=1)
    before = flat(student).clone()
    trained.fit(kdengine.loader(items(), 32), epochs=1)
    assert source.updates == 1
    assert torch.allclose(flat(source.module), (before + flat(student)) / 2, atol=1e-6)


def test_agreement_is_measured_with_the_average_as_it_is_by_then():
    source, student = EMA(decay=0.9), mlp()
    test = kdengine.loader(items(), 16, shuffle=False)
    trained = engine(student, source, metrics={"agreement": "agreement"})
    said = trained.fit(kdengine.loader(items(), 8), test, epochs=2).metrics["agreement"]
    inputs = items()[:][0]
    same = student(inputs).argmax(-1) == source.module(inputs).argmax(-1)
    assert said == pytest.approx(float(same.float().mean()))
    assert trained.evaluate(test)["agreement"] == said


def test_features_of_the_average_have_the_paths_of_the_student():
    hint = {"hint": Hint(student="1", teacher="1"), "ce": CE()}
    history = engine(teacher=EMA(), losses=hint, weights={}).fit(kdengine.loader(items(), 8), epochs=2).history
    assert history[-1]["hint"] > 0


def test_a_foreign_loop_moves_the_average_itself():
    source, student = EMA(), mlp()
    own = engine(student, source, losses={"kd": KD()}, weights={})
    inputs = torch.randn(4, INPUTS)
    assert float(own.objective(inputs).detach()) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        student[0].weight.mul_(2.0)
    own.source.update(student)
    assert float(own.objective(inputs).detach()) > 1e-4


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(kdengine.ConfigurationError, match="decay is the share"):
        EMA(decay=decay)


def test_without_a_fit_there_is_no_average():
    assert EMA().modules() == []
    with pytest.raises(kdengine.ConfigurationError, match="before a fit"):
        EMA().state_dict()
