"""The objective of one batch in a foreign loop: what a fit's first step checks, and windows of accumulated batches."""

import warnings

import pytest
import torch
from torch.nn import functional as F

import kdengine
from kdengine.losses import CE, KD
from tests.engine.common import CLASSES, engine, flat, items, mlp

X, Y = items(16).tensors


def gradient(build, batches, window):
    """The sum of the gradients over batches, as a loop that accumulates has it."""
    student = mlp(dtype=torch.float64)
    foreign = build(student)
    for batch in batches:
        foreign.objective(batch, **({"window": batches} if window else {})).backward()
    return torch.cat([parameter.grad.flatten() for parameter in student.parameters()])


def labelled_part(inputs, labels, first):
    labels = labels.clone()
    labels[first] = -100
    return inputs.double(), labels


@pytest.mark.parametrize("sizes", [(8, 8), (5, 11), (1, 3, 12)])
def test_the_sum_over_a_window_is_the_gradient_of_the_whole_step(sizes):
    def build(student):
        return engine(student, mlp(32, torch.float64), losses={"kd": KD(hard_weight=0.5), "ce": CE()}, weights={})

    whole = labelled_part(X, Y, slice(1, 6))
    parts = list(zip(whole[0].split(sizes), whole[1].split(sizes), strict=True))
    expected = gradient(build, [whole], window=False)
    torch.testing.assert_close(gradient(build, parts, window=True), expected, rtol=1e-10, atol=0)
    assert (gradient(build, parts, window=False) - expected).norm() > 0.1 * expected.norm()


def test_a_window_takes_the_step_that_the_engine_takes():
    start = flat(mlp())
    own, foreign = mlp(), mlp()
    engine(own).train_step([(X[:4], Y[:4]), (X[4:], Y[4:])])
    optimizer = torch.optim.SGD(foreign.parameters(), lr=0.1, momentum=0.9)
    guest, window = engine(foreign), [(X[:4], Y[:4]), (X[4:], Y[4:])]
    for batch in window:
        guest.objective(batch, window=window).backward()
    optimizer.step()
    torch.testing.assert_close(flat(foreign) - start, flat(own) - start, rtol=1e-4, atol=1e-8)


def test_a_window_without_its_batch_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="fewer items than the batch"):
        engine().objective((X, Y), window=[(X[:4], Y[:4])])


def test_unequal_classes_and_unfit_labels_are_refused_whenever_they_come():
    with pytest.raises(kdengine.LossError, match=r"^losses\.kd: .*5 classes and the teacher 7"):
        engine(teacher=mlp(32, classes=7)).objective((X, Y))
    foreign = engine()
    foreign.objective((X, Y))
    with pytest.raises(kdengine.LossError, match=r"^losses\.ce: .*float32; use labels\.long\(\)"):
        foreign.objective((X, Y.float()))


def test_a_frozen_teacher_in_training_mode_is_refused():
    teacher = mlp(32, dropout=0.5)
    foreign = engine(teacher=teacher)
    foreign.objective((X, Y))
    teacher.train()
    with pytest.raises(kdengine.ConfigurationError, match="put into training mode"):
        foreign.objective((X, Y))


class Idle(kdengine.BatchTransform):
    def __call__(self, batch, generator):
        return batch


class Watches:
    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_on_step_end(self, context):
        pass


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"accumulate": 4}, "accumulate"),
        ({"batch_transforms": [Idle()]}, "batch_transforms"),
        ({"plugins": [Watches()]}, "callbacks of plugins"),
        ({"clip": 1.0, "ema": 0.9}, "clip, ema"),
    ],
)
def test_what_has_no_part_in_a_foreign_loop_is_said_once(options, named):
    foreign = engine(**options)
    with pytest.warns(UserWarning, match=f"{named} of this engine do not act"):
        foreign.objective((X, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foreign.objective((X, Y))
        engine().objective((X, Y))


def test_a_single_batch_is_divided_by_its_own_items():
    student = mlp()
    value = engine(student, losses={"ce": CE()}, weights={}).objective((X, Y)).item()
    assert value == pytest.approx(F.cross_entropy(student(X), Y).item(), rel=1e-5)
    assert Y.max() < CLASSES
