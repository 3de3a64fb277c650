"""What a loss or metric would read wrongly is refused before the first step, wherever outputs are first seen."""

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kdengine
from kdengine.engine.objective import Objective
from kdengine.losses import (
    BCE,
    CE,
    DIST,
    DKD,
    JSD,
    KD,
    MSE,
    NKD,
    TVD,
    WSLD,
    BinaryKL,
    Hard,
    LogitMSE,
    MultiLevel,
    SoftCE,
)
from tests.engine.common import CLASSES, INPUTS, engine, items, mlp

X, Y = items(16).tensors


def single(student, loss, data, teacher=None, **options):
    """The objective of one loss on one batch."""
    return engine(student, teacher, losses={"mine": loss}, weights={}, **options).objective(data).item()


def refused(said, call):
    with pytest.raises(kdengine.LossError, match=rf"^losses\.mine: .*{said}"):
        call()


class Dense(nn.Module):
    """A segmentation model: classes in dimension 1."""

    def __init__(self, width, classes=CLASSES):
        super().__init__()
        torch.manual_seed(width)
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))

    def forward(self, images):
        return self.layers(images)


class Language(nn.Module):
    """Logits of each token."""

    def __init__(self, width, classes=12):
        super().__init__()
        torch.manual_seed(width)
        self.embed, self.head = nn.Embedding(12, width), nn.Linear(width, classes)

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.head(self.embed(input_ids))}


class Decoder(Language):
    def forward(self, input_ids, decoder_input_ids):
        return super().forward(decoder_input_ids)


IMAGES, MAPS = torch.randn(2, 3, CLASSES, CLASSES), torch.randint(CLASSES, (2, CLASSES, CLASSES))
TOKENS = torch.randint(12, (4, 6), generator=torch.Generator().manual_seed(0))


# Classes in dimension 1


@pytest.mark.parametrize("loss", [KD(), CE(), DIST(), TVD(), BinaryKL(), SoftCE(), Hard(), DKD()], ids=repr)
@pytest.mark.parametrize("size", [(CLASSES, CLASSES), (4, 7)])
def test_maps_with_classes_in_dimension_1_are_refused(loss, size):
    batch = torch.randn(2, 3, *size), torch.randint(CLASSES, (2, *size))
    refused(r"classes are in dimension 1.*movedim\(1, -1\)", lambda: single(Dense(4), loss, batch, Dense(8)))


def test_maps_are_refused_in_the_first_step_of_a_fit_and_in_an_evaluation_too():
    fitted = engine(Dense(4), Dense(8), losses={"mine": KD()}, weights={}, metrics={"same": "agreement"})
    refused("dimension 1", lambda: fitted.fit([IMAGES], epochs=1))
    with pytest.raises(kdengine.ConfigurationError, match=r"^metrics\.same: .*dimension 1"):
        fitted.evaluate([IMAGES])


def test_classes_last_gives_the_values_over_classes():
    student, teacher = Dense(4), Dense(8)
    s, t = student(IMAGES), teacher(IMAGES)
    moved = {"output": kdengine.classes_last}
    divergence = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()
    assert single(student, KD(1.0), IMAGES, teacher, **moved) == pytest.approx(divergence.item(), rel=1e-5)
    assert single(student, CE(), (IMAGES, MAPS), **moved) == pytest.approx(F.cross_entropy(s, MAPS).item(), rel=1e-5)
    measured = engine(student, teacher, metrics={"same": "agreement", "top1": "top1"}, **moved)
    same = (s.argmax(1) == t.argmax(1)).float().mean().item()
    right = (s.argmax(1) == MAPS).float().mean().item()
    assert measured.evaluate([(IMAGES, MAPS)]) == {"same": pytest.approx(same), "top1": pytest.approx(right)}


def test_labels_show_that_an_output_that_was_chosen_has_its_classes_in_dimension_1():
    batch = torch.randn(2, 3, 4, 7), torch.randint(CLASSES, (2, 4, 7))
    refused("dimension 1", lambda: single(Dense(4), KD(), batch, Dense(8), output=lambda output: output))
    sequence = nn.Conv1d(3, CLASSES, 1)
    refused("dimension 1", lambda: single(sequence, CE(), (torch.randn(2, 3, 7), torch.randint(CLASSES, (2, 7)))))


def test_labels_show_that_the_classes_of_a_map_are_last():
    last = nn.Linear(3, CLASSES)
    batch = torch.randn(2, 4, 7, 3), torch.randint(CLASSES, (2, 4, 7))
    expected = F.cross_entropy(last(batch[0]).movedim(-1, 1), batch[1]).item()
    assert single(last, CE(), batch) == pytest.approx(expected, rel=1e-5)


def test_losses_that_declare_no_classes_take_maps_as_they_are():
    student, teacher = Dense(4, classes=1), Dense(8, classes=1)
    for loss in (MSE(), BCE(target="teacher")):
        assert single(student, loss, IMAGES, teacher) > 0
    criterion = kdengine.from_callable(nn.CrossEntropyLoss(reduction="none"), "labels")
    expected = F.cross_entropy(Dense(4)(IMAGES), MAPS).item()
    assert single(Dense(4), criterion, (IMAGES, MAPS)) == pytest.approx(expected, rel=1e-5)


# One class


@pytest.mark.parametrize(
    "loss", [KD(), JSD(), TVD(), DIST(), NKD(), WSLD(), MultiLevel(), Hard(), CE(), KD(hard_weight=1.0)], ids=repr
)
def test_a_softmax_over_one_class_is_refused(loss):
    batch = X, torch.zeros(len(X), dtype=torch.long)
    refused("single class.*binary_kl or bce", lambda: single(mlp(classes=1), loss, batch, mlp(32, classes=1)))


def test_metrics_of_one_class_are_refused_and_binary_losses_are_not():
    student, teacher = mlp(classes=1), mlp(32, classes=1)
    assert single(student, BinaryKL(), X, teacher) > 0
    for metric in ("agreement", "top1", "calibration_error"):
        with pytest.raises(kdengine.ConfigurationError, match=rf"^metrics\.{metric}: .*single class"):
            engine(student, teacher, metrics={metric: metric}).evaluate([(X, Y)])


def numbers(width):
    """One number per item, (B,)."""
    return nn.Sequential(mlp(width, classes=1), nn.Flatten(0))


@pytest.mark.parametrize("loss", [KD(), TVD(), DIST(), Hard(), CE(), DKD()], ids=repr)
def test_a_softmax_over_the_items_is_refused(loss):
    batch = X, torch.zeros(len(X), dtype=torch.long)
    refused("no dimension of classes", lambda: single(numbers(8), loss, batch, numbers(32)))


@pytest.mark.parametrize("loss", [BinaryKL(2.0), BCE(2.0)], ids=repr)
def test_binary_losses_take_one_number_per_item_in_both_forms(loss):
    flat, column = (single(make(8), loss, X, make(32)) for make in (numbers, lambda width: mlp(width, classes=1)))
    assert flat == pytest.approx(column, rel=1e-6)
    assert flat > 0


@pytest.mark.parametrize("loss", [KD(), TVD(), JSD(), Hard(), LogitMSE(), BinaryKL()], ids=repr)
def test_rows_of_the_student_are_not_broadcast_against_those_of_the_teacher(loss):
    taught = nn.Sequential(mlp(32), nn.Unflatten(1, (1, CLASSES)))
    refused(r"\(16, 5\).*\(16, 1, 5\)", lambda: single(mlp(), loss, X, taught))


def test_agreement_of_classes_that_do_not_correspond_is_undefined():
    assert engine(mlp(), mlp(32, classes=7), metrics={"a": "agreement"}).evaluate([X]) == {"a": None}


# Several heads by guess


class Two(nn.Module):
    def __init__(self, kind=tuple):
        super().__init__()
        self.one, self.two, self.kind = mlp(8), mlp(9), kind

    def forward(self, inputs):
        return self.kind([self.one(inputs), self.two(inputs)])


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_first_of_several_outputs_alike_is_not_taken_by_guess(kind):
    refused(r"the student returned .* items 0, 1 all.*Engine\(output=", lambda: single(Two(kind), CE(), (X, Y)))
    refused("the teacher returned", lambda: single(mlp(), KD(), X, Two(kind)))
    assert single(Two(kind), CE(), (X, Y), output=lambda output: output[1]) > 0
    with pytest.raises(kdengine.ConfigurationError, match=r"^metrics\.mine: the student returned"):
        engine(Two(kind), metrics={"mine": lambda logits, labels: logits[:, 0]}).evaluate([(X, Y)])


def test_logits_beside_other_tensors_are_found():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = mlp()

        def forward(self, inputs):
            return self.head(inputs), inputs, torch.zeros(len(inputs), CLASSES, dtype=torch.long)

    student = Hidden()
    assert single(student, CE(), (X, Y)) == pytest.approx(F.cross_entropy(student.head(X), Y).item(), rel=1e-5)


# Labels


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("loss", [CE(), KD(hard_weight=1.0), DKD(), NKD(), WSLD()], ids=repr)
def test_class_ids_of_any_integer_type_count_alike(loss, dtype):
    student, teacher = mlp(), mlp(32)
    assert single(student, loss, (X, Y.to(dtype)), teacher) == single(student, loss, (X, Y), teacher)


def test_a_criterion_takes_class_ids_of_any_integer_type():
    criterion = kdengine.from_callable(nn.CrossEntropyLoss(reduction="none"), "labels")
    assert single(mlp(), criterion, (X, Y.int())) == single(mlp(), criterion, (X, Y))


@pytest.mark.parametrize("loss", [CE(), KD(hard_weight=1.0), NKD(), WSLD()], ids=repr)
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (Y[:, None], r"\(16, 1\) int64; use labels\.squeeze\(-1\)"),
        (Y > 0, r"bool; use labels\.long\(\)"),
        (F.one_hot(Y, CLASSES), r"\(16, 5\) int64; use labels\.float\(\)"),
        (Y + 1, r"the label 5 is out of range: the logits have 5 classes.*count from 1\?"),
        (Y - 3, "the label -3 is out of range.*where -3 marks an item without a label: ignore_index=-3"),
    ],
)
def test_labels_of_another_form_are_refused_in_one_way(loss, labels, said):
    refused(said, lambda: single(mlp(), loss, (X, labels), mlp(32)))


def test_float_class_ids_are_refused():
    for loss in (CE(), KD(hard_weight=1.0)):
        refused(r"\(16,\) float32; use labels\.long", lambda loss=loss: single(mlp(), loss, (X, Y.float()), mlp(32)))


@pytest.mark.parametrize(
    "loss", [CE(), DKD(), KD(hard_weight=1.0), kdengine.from_callable(nn.CrossEntropyLoss(reduction="none"), "labels")]
)
def test_a_label_out_of_range_in_a_later_batch_is_named(loss):
    fitted = engine(losses={"mine": loss}, weights={})
    with pytest.raises(kdengine.ConfigurationError, match=r"^losses\.mine: .*(7 is out of range|0 to 4.*got 7)"):
        fitted.fit([(X, Y), (X, Y.clone().fill_(7))], epochs=1)


@pytest.mark.parametrize("metric", ["top1", "top5", "calibration_error"])
@pytest.mark.parametrize(("labels", "bad"), [(Y + 1, 5), (torch.full((16,), -1), -1)])
def test_labels_out_of_range_are_no_misses_of_a_metric(metric, labels, bad):
    with pytest.raises(kdengine.ConfigurationError, match=rf"^metrics\.{metric}: the label {bad} is out of range"):
        engine(mlp(), metrics={metric: metric}).evaluate([(X, labels)])


@pytest.mark.parametrize("classes", [CLASSES, CLASSES + 2])
def test_on_an_accelerator_labels_are_checked_on_the_host_against_the_logits_that_are_there(classes):
    objective = Objective({"mine": CE()}, {})
    objective.on_device.add("mine")

    def evaluate(labels):
        host, batch = kdengine.Batch(X, labels), kdengine.Batch(X, labels)
        batch.host, batch.student = host, kdengine.Output(None, torch.zeros(len(X), classes))
        return objective.evaluate(batch, [None], [len(X)], [len(X)])

    assert torch.isfinite(evaluate(torch.full_like(Y, classes - 1))[0])
    refused(f"the label {classes} is out of range", lambda: evaluate(torch.full_like(Y, classes)))


# Causal language models


@pytest.mark.parametrize("batch", [{"input_ids": TOKENS, "labels": TOKENS}, (TOKENS, TOKENS.clone())])
@pytest.mark.parametrize("loss", [CE(), KD(hard_weight=1.0), DKD()], ids=repr)
def test_labels_that_repeat_the_input_are_refused(batch, loss):
    refused(r"own input tokens.*kdengine\.next_token", lambda: single(Language(8), loss, batch, Language(16)))


def test_labels_that_repeat_the_input_are_refused_with_prompt_and_padding_left_out_and_by_metrics():
    labels = TOKENS.clone()
    labels[:, :2] = labels[1:, 5:] = -100
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": labels}
    refused("own input tokens", lambda: single(Language(8), CE(), batch))
    decoded = {"input_ids": TOKENS + 1, "decoder_input_ids": TOKENS, "labels": labels}
    refused("own input tokens", lambda: single(Decoder(8), CE(), decoded))
    with pytest.raises(kdengine.ConfigurationError, match=r"^metrics\.top1: .*own input tokens"):
        engine(Language(8), metrics={"top1": "top1"}).evaluate([batch])


def test_shifted_labels_give_the_loss_of_the_next_token():
    student, batch = Language(8), {"input_ids": TOKENS, "labels": TOKENS}
    logits = student(TOKENS)["logits"]
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, 12), TOKENS[:, 1:].reshape(-1))
    options = {"labels": kdengine.next_token, "metrics": {"top1": "top1"}}
    assert single(student, CE(), batch, **options) == pytest.approx(expected.item(), rel=1e-5)
    right = (logits[:, :-1].argmax(-1) == TOKENS[:, 1:]).float().mean().item()
    assert engine(student, **options).evaluate([batch])["top1"] == pytest.approx(right)


def test_labels_of_tokens_that_are_not_the_input_pass_and_copies_that_are_meant():
    masked = torch.where(torch.rand(4, 6) < 0.5, TOKENS, -100)
    assert single(Language(8), CE(), {"input_ids": (TOKENS + 1) % 12, "labels": masked}) > 0
    copied = {"input_ids": TOKENS, "labels": TOKENS}
    assert single(Language(8), CE(), copied, labels=lambda labels: labels) > 0
    assert single(Language(8), KD(), copied, Language(16)) > 0


# What may be meant is said once


def padded():
    labels = kdengine.next_token(TOKENS)
    labels[1:, 3:] = -100
    return {"input_ids": TOKENS, "labels": labels}


@pytest.mark.parametrize("loss", [KD(), KD(hard_weight=1.0), JSD(), Hard(), DIST()], ids=repr)
def test_a_mean_over_items_in_which_padding_counts_is_said_once(loss):
    measured = engine(Language(8), Language(16), losses={"mine": loss}, weights={})
    with pytest.warns(UserWarning, match=r"losses\.mine: .*all 6 positions.*label -100") as said:
        measured.objective(padded())
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured.objective(padded())


def test_padding_is_seen_in_an_attention_mask_and_not_where_there_is_none():
    mask = torch.ones_like(TOKENS)
    mask[0, 4:] = 0
    with pytest.warns(UserWarning, match="positions.*attention_mask leaves out"):
        single(Language(8), KD(), {"input_ids": TOKENS, "attention_mask": mask}, Language(16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single(Language(8), KD(), {"input_ids": TOKENS, "attention_mask": mask.fill_(1)}, Language(16))
        single(Language(8), CE(), padded())


def test_positions_as_items_leave_padding_out():
    student, teacher, data = Language(8), Language(16), padded()
    labels = data["labels"].flatten()
    options = {
        "batch": lambda item: kdengine.Batch(
            {"input_ids": item["input_ids"]}, labels, mask=labels != -100, size=labels.numel()
        ),
        "output": lambda output: output["logits"].flatten(0, 1),
    }
    s, t = (model(TOKENS)["logits"].flatten(0, 1)[labels != -100] for model in (student, teacher))
    expected = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean().item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert single(student, KD(1.0), data, teacher, **options) == pytest.approx(expected, rel=1e-4)
        fitted = engine(student, teacher, losses={"kd": KD(1.0)}, weights={}, **options)
        assert fitted.fit([data], epochs=1).history[0]["kd"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ends_in_a_softmax_is_named_once(dtype):
    class Probabilities(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = mlp(32)

        def forward(self, inputs):
            return self.head(inputs).to(dtype).softmax(-1)

    for student, teacher, who in ((mlp(), Probabilities(), "teacher"), (Probabilities(), mlp(), "student")):
        fitted = engine(student, teacher, losses={"kd": KD()}, weights={})
        with pytest.warns(UserWarning, match=f"the {who} Probabilities seems to end in a softmax"):
            fitted.fit([X], epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single(mlp(), KD(), X, nn.Sequential(mlp(32), nn.LogSoftmax(-1)))


@pytest.mark.parametrize("loss", [MSE, BCE], ids=lambda loss: loss.__name__)
def test_a_loss_that_reads_the_teacher_by_default_says_so_where_labels_lie_unread(loss):
    several = torch.randint(2, (16, CLASSES)).float()
    with pytest.warns(UserWarning, match=r"compares the student with its teacher.*target='labels'"):
        single(mlp(), loss(), (X, several), mlp(32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single(mlp(), loss(target="teacher"), (X, several), mlp(32))
        single(mlp(), loss(), (X, Y), mlp(32))
        soft = several.softmax(-1)
        engine(losses={"mine": loss(), "ce": CE()}, weights={}).objective((X, soft))
    assert X.shape[1] == INPUTS


class PerToken(kdengine.Loss):
    """A loss of one's own with a value for each position."""

    def __init__(self, **needs):
        super().__init__()
        self.needs = kdengine.Needs(labels=True, **needs)

    def per_item(self, batch):
        return F.cross_entropy(batch.student.logits.movedim(-1, 1), batch.labels, reduction="none")


def test_padding_that_counts_in_a_loss_of_ones_own_is_said_until_it_declares_its_classes():
    with pytest.warns(UserWarning, match=r"losses\.mine: PerToken\.per_item gives a value for each position \(6,\)"):
        single(Language(8), PerToken(), padded(), Language(16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = single(Language(8), PerToken(classes="exclusive", teacher=False), padded())
        single(Language(8), PerToken(), {**padded(), "labels": (TOKENS + 1) % 12}, Language(16))
    labels = padded()["labels"].flatten()
    expected = F.cross_entropy(Language(8)(TOKENS)["logits"].flatten(0, 1), labels).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_ignored_pixels_that_count_in_a_criterion_are_said_unless_it_says_which_it_ignores():
    def criterion(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=-100)

    maps = MAPS.clone()
    maps[:, :2] = -100
    with pytest.warns(UserWarning, match=r"losses\.mine: .* a value for each position \(5, 5\)"):
        single(Dense(4), kdengine.from_callable(criterion, "labels"), (IMAGES, maps))
    told = functools.partial(F.cross_entropy, reduction="none", ignore_index=-100)
    expected = F.cross_entropy(Dense(4)(IMAGES), maps).item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = single(Dense(4), kdengine.from_callable(told, "labels"), (IMAGES, maps))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_head_that_no_loss_trains_is_named_in_the_first_step():
    fitted = engine(Two(), losses={"ce": CE()}, weights={}, output=lambda output: output[0])
    with pytest.warns(UserWarning, match="of the student's .* got no gradient in the first step: .*two"):
        fitted.fit([(X, Y)] * 2, epochs=1)
    quiet = Two()
    quiet.two.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine(quiet, losses={"ce": CE()}, weights={}, output=lambda output: output[0]).fit([(X, Y)], epochs=1)
        both = {"ce": lambda output: output[0], "own": lambda output: output[1]}
        engine(Two(), losses={"ce": CE(), "own": CE()}, weights={}, output=both).fit([(X, Y)], epochs=1)


def test_labels_that_are_several_are_no_distribution():
    several = torch.ones(16, CLASSES)
    with pytest.warns(UserWarning, match=r"rows sum to values from 5 to 5.*BCE\(target='labels'\)"):
        single(mlp(), CE(), (X, several))
    mixed = several / CLASSES
    mixed[0] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single(mlp(), CE(), (X, mixed))
        single(mlp(), BCE(target="labels"), (X, several))


def test_maps_that_were_picked_as_they_are_leave_a_doubt():
    class Fields(Dense):
        def forward(self, images):
            return {"out": super().forward(images)}

    def read(output):
        return output["out"]

    with pytest.warns(UserWarning, match="the last dimension of the student's logits .* is taken for the classes"):
        single(Fields(4), KD(), IMAGES, Fields(8), output=read)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single(Fields(4), KD(), IMAGES, Fields(8), output=lambda output: kdengine.classes_last(output["out"]))
        single(Dense(4), KD(), IMAGES, Dense(8), output=lambda output: output)


def test_a_loss_that_may_read_labels_says_so_where_there_is_no_teacher():
    for loss in (BCE(), MSE(), kdengine.from_callable(nn.MSELoss(reduction="none"))):
        plain = kdengine.Engine(mlp(), losses={"mine": loss}, loggers=[], device="cpu")
        with pytest.raises(kdengine.ConfigurationError, match=r"need a teacher.*; mine may .*target='labels'"):
            plain.objective((X, torch.rand(16, CLASSES)))
