"""A student trains in the modes that its owner chose, and every model comes back as it was found."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.modes import evaluation_mode
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import CE, KD
from kdengine.teachers.peer import Peer
from tests.engine.common import CLASSES, INPUTS, engine, flat, items, mlp


class Backboned(nn.Module):
    """A backbone with running statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs):
        return self.head(self.backbone(inputs))


def loader():
    return kdengine.loader(items(), 8)


def frozen() -> Backboned:
    student = Backboned()
    student.backbone.requires_grad_(False).eval()
    return student


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


class Seen:
    """Notes the modes of a model in every step."""

    kdengine_hook_version = 1

    def __init__(self) -> None:
        self.modes: list[list[bool]] = []

    @kdengine.hookimpl
    def kdengine_on_backward_end(self, context):
        self.modes.append(modes(context.fit.student))


def test_a_frozen_backbone_in_evaluation_mode_stays_as_it_is():
    student = frozen()
    before, statistics = modes(student), student.backbone[1].running_mean.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(student, metrics={"top1": "top1"}).fit(loader(), loader(), epochs=2)
    assert torch.equal(student.backbone[1].running_mean, statistics)
    assert int(student.backbone[1].num_batches_tracked) == 0
    assert modes(student) == before


def test_one_normalization_layer_put_into_evaluation_mode_keeps_its_statistics_while_its_weights_train():
    student = Backboned()
    student.backbone[1].eval()
    weight = student.backbone[1].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(student).fit(loader(), epochs=1)
    assert int(student.backbone[1].num_batches_tracked) == 0
    assert not torch.equal(student.backbone[1].weight, weight)


def test_a_student_wholly_in_evaluation_mode_trains_wholly_and_is_given_back_in_it():
    student, seen = Backboned().eval(), Seen()
    engine(student, plugins=[seen]).fit(loader(), epochs=1)
    assert seen.modes == [[True] * 6] * 4
    assert modes(student) == [False] * 6
    assert int(student.backbone[1].num_batches_tracked) == 4


def test_an_evaluation_of_ones_own_between_engine_and_fit_does_not_wake_a_frozen_backbone():
    student = frozen()
    trained = engine(student)
    student.eval()
    trained.fit(loader(), epochs=1)
    assert int(student.backbone[1].num_batches_tracked) == 0
    student.train()  # which its owner says
    with pytest.warns(UserWarning, match=r"'backbone' trains, but running statistics.*student\.backbone\.eval\(\)"):
        trained.fit(loader(), epochs=1)
    assert int(student.backbone[1].num_batches_tracked) == 4


def test_train_step_trains_in_the_students_modes_whatever_was_evaluated_in_between():
    student, seen = frozen(), Seen()
    trained = engine(student, plugins=[seen])
    batch = next(iter(loader()))
    for _ in range(2):
        trained.train_step([batch])
        student.eval()
    assert seen.modes == [modes(frozen())] * 2
    assert modes(student) == [False] * 6
    assert int(student.backbone[1].num_batches_tracked) == 0


def test_a_frozen_part_that_gathers_statistics_is_told_once_by_its_outermost_name():
    student = Backboned()
    student.backbone.requires_grad_(False)
    trained = engine(student)
    with pytest.warns(UserWarning, match="no parameter of the student's 'backbone' trains"):
        trained.fit(loader(), epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained.fit(loader(), epochs=1)


def test_statistics_without_parameters_in_a_model_that_trains_are_no_cause_for_a_warning():
    student = nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(student).fit(loader(), epochs=1)


class Thaw:
    """Lets the backbone train after the first epoch."""

    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_on_epoch_end(self, context):
        context.student.backbone.requires_grad_(True)


def test_a_part_that_is_thawed_in_mid_fit_without_an_optimizer_is_told():
    student = frozen()
    with pytest.warns(UserWarning, match=r"'backbone.0.weight'.* does not hold it.*learning rate of 0"):
        engine(student, plugins=[Thaw()]).fit(loader(), epochs=3)


def test_a_part_that_is_thawed_in_mid_fit_trains_where_the_optimizer_holds_it():
    student = frozen()
    weight = student.backbone[0].weight.detach().clone()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(student, optimizer=optimizer, plugins=[Thaw()]).fit(loader(), epochs=2)
    assert not torch.equal(student.backbone[0].weight, weight)


def test_a_part_that_trains_in_evaluation_mode_is_told():
    student = Backboned()
    student.backbone.eval()  # what from_pretrained gives, with a new head
    with pytest.warns(UserWarning, match=r"'backbone' stays in evaluation mode.*student\.train\(\)"):
        engine(student).fit(loader(), epochs=1)
    assert int(student.backbone[1].num_batches_tracked) == 0


def test_a_model_that_keeps_a_part_in_evaluation_mode_by_itself_does_so():
    class NormInEvaluation(Backboned):
        def train(self, mode=True):
            super().train(mode)
            self.backbone[1].eval()
            return self

    for student in (NormInEvaluation().train(), NormInEvaluation().eval()):
        engine(student, metrics={"top1": "top1"}).fit(loader(), loader(), epochs=2)
        assert int(student.backbone[1].num_batches_tracked) == 0


def test_a_peer_with_a_frozen_backbone_keeps_it():
    peer = frozen()
    before = modes(peer)
    engine(mlp(), Peer(peer)).fit(loader(), epochs=1)
    assert int(peer.backbone[1].num_batches_tracked) == 0
    assert modes(peer) == before


def test_a_module_that_does_more_when_its_mode_changes_is_asked_to():
    class Folding(nn.Linear):
        """Folds a second weight into the first for evaluation, as LoRA does."""

        folded = False

        def train(self, mode=True):
            super().train(mode)
            self.folded = not mode
            return self

    model = nn.Sequential(Folding(2, 2), nn.Sequential(Folding(2, 2))).train()
    model[1].eval()
    with evaluation_mode(model):
        assert model[0].folded
        assert model[1][0].folded
    assert [model[0].folded, model[1][0].folded] == [False, True]
    assert modes(model) == [True, True, False, False]


def refusals():
    student = Backboned()
    yield "shared with the student", student, student, {}
    yield "of other classes", Backboned(), mlp(8, classes=CLASSES + 1), {}
    yield "an optimizer that is none", Backboned(), mlp(), {"optimizer": lambda named: named}
    yield (
        "no labels for ce",
        Backboned(),
        mlp(),
        {"losses": {"kd": KD(), "ce": CE(ignore_index=3)}, "weights": {"x": 1}},
    )
    teacher = nn.Sequential(mlp(), nn.Dropout(0.1))
    teacher[0][0].weight.requires_grad_(False)
    yield "partly frozen before", Backboned(), LiveTeacher(teacher), {"optimizer": None}


@pytest.mark.parametrize(
    ("student", "teacher", "options"), [case[1:] for case in refusals()], ids=[case[0] for case in refusals()]
)
def test_a_fit_that_refuses_leaves_every_model_as_it_found_it(student, teacher, options):
    module = teacher.module if isinstance(teacher, LiveTeacher) else teacher
    models = nn.ModuleList([student, module])
    before = modes(models), [parameter.requires_grad for parameter in models.parameters()]
    with pytest.raises(kdengine.ConfigurationError):
        engine(student, teacher, **options).fit(loader(), epochs=1)
    assert before == (modes(models), [parameter.requires_grad for parameter in models.parameters()])


def test_an_exception_in_the_middle_of_a_fit_gives_the_students_modes_back():
    class Stop:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_start(self, context):
            if context.step == 2:
                raise KeyboardInterrupt

    student = frozen()
    before, weights = modes(student), flat(student)
    with pytest.raises(KeyboardInterrupt):
        engine(student, plugins=[Stop()]).fit(loader(), epochs=1)
    assert modes(student) == before
    assert not torch.equal(flat(student), weights)


@pytest.mark.parametrize("make", ["a new head", "a head set to train"])
def test_a_part_in_training_mode_trains_inside_of_a_model_that_is_in_evaluation_mode(make):
    student = nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)).eval()
    if make == "a new head":
        student[2] = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, CLASSES))
    else:
        student[2].train()
    seen = []

    class Look:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_backward_end(self, context):
            seen.append([part.training for part in student.modules()])

    before = [part.training for part in student.modules()]
    engine(student, plugins=[Look()]).fit(kdengine.loader(items(), 8), epochs=1)
    assert seen[0] == before
    assert [part.training for part in student.modules()] == before
