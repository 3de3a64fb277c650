"""What people type beside the cases that were reported: the right number, or words."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

import kdengine
from kdengine.losses import CE, KD
from kdengine.teachers.ensemble import Ensemble
from tests.engine.common import CLASSES, INPUTS, engine, items, mlp

X, Y = items()[:]


class Stream(IterableDataset):
    """Gives every item in every worker."""

    def __init__(self, parts=False):
        self.parts = parts

    def __len__(self):
        return len(X)

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        step = slice(worker.id, None, worker.num_workers) if self.parts and worker else slice(None)
        return iter(list(zip(X, Y, strict=True))[step])


def told(fit):
    with warnings.catch_warnings(record=True) as every:
        warnings.simplefilter("always")
        fit()
    return [str(each.message) for each in every if issubclass(each.category, kdengine.KDEngineWarning)]


@pytest.mark.parametrize(("parts", "said"), [(False, 1), (True, 0)])
def test_a_stream_that_every_worker_reads_whole_is_told_once(parts, said):
    found = told(lambda: engine().fit(DataLoader(Stream(parts), 8, num_workers=2), epochs=2))
    assert sum("Stream has batches left" in each for each in found) == said


def test_the_loader_refuses_a_stream_before_it_reads_it():
    with pytest.raises(kdengine.ConfigurationError, match=r"map-style data set.*Stream"):
        kdengine.loader(Stream(), 4)


def halved(inputs):
    return inputs.mul_(0.5)


CHANGING = {
    "its first module": {"teacher": nn.Sequential(nn.ReLU(inplace=True), mlp(32))},
    "what makes its inputs": {"teacher_inputs": halved},
    "one of several": {"teacher": Ensemble([nn.Sequential(nn.ReLU(inplace=True), mlp(32)), mlp(16)])},
}


@pytest.mark.parametrize("options", CHANGING.values(), ids=CHANGING)
def test_a_teacher_that_changes_its_inputs_in_place_is_refused(options):
    with pytest.raises(kdengine.ConfigurationError, match="the teacher changes its inputs in place"):
        engine(**options).fit([(X.clone(), Y)], epochs=1)
    with pytest.raises(kdengine.ConfigurationError, match="the teacher changes its inputs in place"):
        engine(**options).objective((X.clone(), Y))


def test_a_teacher_with_a_copy_of_its_own_teaches_what_it_says():
    teacher, student = nn.Sequential(nn.ReLU(inplace=True), mlp(32)), mlp()
    made = engine(student, teacher, losses=[KD(1.0)], weights={}, teacher_inputs=torch.clone)
    expected = functional.kl_div(
        student(X).log_softmax(-1), teacher(X.clone()).log_softmax(-1), reduction="batchmean", log_target=True
    )
    assert made.objective((X.clone(), Y)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_without_labelled_items_is_not_in_the_mean_of_its_loss():
    labels = Y.clone()
    labels[8:] = -100
    student = mlp()
    expected = functional.cross_entropy(student(X), labels).item()
    still = {"optimizer": lambda named: torch.optim.SGD([named[0][1]], 1e-12)}
    made = engine(student, losses={"ce": CE()}, weights={}, **still)
    history = made.fit([(X[at : at + 8], labels[at : at + 8]) for at in range(0, 32, 8)], epochs=1).history
    assert history[0]["ce"] == pytest.approx(expected, rel=1e-6)
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-6)


def test_an_epoch_in_which_nothing_counts_for_a_loss_is_told_once():
    found = told(lambda: engine().fit([(X, torch.full_like(Y, -100))], epochs=2))
    assert sum("no item of epoch 1 counts in 'ce'" in each for each in found) == 1
    assert not told(lambda: engine().fit([(X, Y)], epochs=2))


def test_class_weights_of_a_criterion_are_warned_of_and_items_weigh_as_in_pytorch():
    weight = torch.linspace(1.0, 3.0, CLASSES)
    found = told(lambda: kdengine.from_callable(nn.CrossEntropyLoss(weight=weight, reduction="none"), "labels"))
    assert len(found) == 1
    student = mlp()
    made = engine(
        student, losses=[CE()], weights={},
        batch=lambda item: kdengine.Batch(item[0], item[1], weights=weight[item[1]]),
    )  # fmt: skip
    expected = nn.CrossEntropyLoss(weight=weight)(student(X), Y).item()
    assert made.objective((X, Y)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["teacher", "accumulate", "clip", "ema", "precision", "metrics", "out", "output"])
def test_an_argument_that_is_set_on_an_engine_that_is_made_is_refused(name):
    made = engine()
    with pytest.raises(kdengine.ConfigurationError, match=rf"{name} is an argument of Engine.*Engine\(\.\.\., {name}="):
        setattr(made, name, None)


@pytest.mark.parametrize("logger", [lambda record: None, [].append], ids=["one argument", "a method in C"])
def test_a_logger_that_takes_no_step_is_refused_before_training(logger):
    with pytest.raises(kdengine.ConfigurationError, match=r"fn\(record, step=n\)"):
        engine(loggers=[logger]).fit([(X, Y)], epochs=1)


@pytest.mark.parametrize("shape", [(16, 12), (16, 30)], ids=["few classes", "many"])
def test_logits_whose_number_of_classes_varies_train(shape):
    """Answers are positions, of which there are as many as tokens."""
    student = nn.Linear(INPUTS, 1)
    made = engine(student, losses=[CE()], weights={}, output=lambda output: output.squeeze(-1))
    batches = [(torch.randn(4, length, INPUTS), torch.full((4,), length - 1)) for length in shape]
    assert made.fit(batches, epochs=1).steps == 2
