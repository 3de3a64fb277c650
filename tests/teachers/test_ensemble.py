"""Several teachers as one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import kdengine
from kdengine.api import Batch
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import CE, KD, Hint
from kdengine.teachers.cached import CachedTeacher
from kdengine.teachers.ema import EMA
from kdengine.teachers.ensemble import Ensemble
from tests.engine.common import CLASSES, engine, flat, items, mlp


class Says(nn.Module):
    """Gives fixed logits ``(B, ..., V)``."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, inputs):
        return self.logits


def logits_of(*shape, count=3, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def mean_of(given, labels=None, **options):
    batch = Batch(torch.zeros(given[0].shape[:-1]), labels)
    return Ensemble([Says(each) for each in given], **options).forward(batch)


def transcription(given, weights, mean, temperature):
    """Item by item and class by class; ``weights[k][item]``."""
    result = torch.empty_like(given[0])
    for item in range(len(given[0])):
        if mean == "logits":
            result[item] = sum(w[item] * t[item] for w, t in zip(weights, given, strict=True))
            continue
        p = torch.zeros(given[0].shape[-1], dtype=torch.float64)
        for w, t in zip(weights, given, strict=True):
            e = [math.exp(float(z) / temperature) for z in t[item]]
            p += w[item] * torch.tensor([z / sum(e) for z in e], dtype=torch.float64)
        result[item] = temperature * p.log()
    return result


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 1.0], [0.0, 1.0, 3.0]])
def test_the_mean_is_that_of_the_formula_in_float64(mean, temperature, weights):
    given = logits_of(6, 5)
    shares = [w / sum(weights or [1, 1, 1]) for w in weights or [1, 1, 1]]
    expected = transcription(given, [[w] * 6 for w in shares], mean, temperature)
    found = mean_of(given, mean=mean, temperature=temperature, weights=weights)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_at_its_temperature_a_loss_sees_the_mean_of_the_softened_distributions():
    given = logits_of(6, 5)
    seen = (mean_of(given, temperature=3.0) / 3.0).softmax(dim=-1)
    assert torch.allclose(seen, sum((t / 3.0).softmax(dim=-1) for t in given) / 3)


def test_the_gradient_of_kd_is_that_of_the_mean_of_the_losses_of_each_teacher():
    given = logits_of(6, 5)
    student = logits_of(6, 5, count=1, seed=1)[0].requires_grad_()

    def gradient(targets):
        loss = sum(
            nn.functional.kl_div(
                (student / 2).log_softmax(-1), (t / 2).log_softmax(-1), log_target=True, reduction="sum"
            )
            for t in targets
        )
        return torch.autograd.grad(loss / len(targets), student)[0]

    together = gradient([mean_of(given, temperature=2.0)])
    assert torch.allclose(together, gradient(given), rtol=0, atol=1e-12)


def weights_by_labels(given, labels):
    """The published weights, item by item."""
    found = [[0.0] * len(labels) for _ in given]
    for item, label in enumerate(labels):
        entropies = [float(torch.logsumexp(t[item], 0) - t[item][label]) for t in given]
        for k, own in enumerate(entropies):
            found[k][item] = (1 - math.exp(own) / sum(map(math.exp, entropies))) / (len(given) - 1)
    return found


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_weights_by_labels_are_those_of_the_paper(mean):
    given, labels = logits_of(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    expected = transcription(given, weights_by_labels(given, labels), mean, 1.0)
    assert torch.allclose(mean_of(given, labels, mean=mean, confidence="labels"), expected, rtol=0, atol=1e-12)


def test_a_teacher_that_is_right_counts_more_than_one_that_is_wrong():
    right, wrong = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    found = mean_of([right, wrong], torch.tensor([0]), confidence="labels").softmax(dim=-1)
    assert found[0, 0] > 0.99
    assert torch.allclose(
        mean_of([right, wrong], None, confidence="labels").softmax(dim=-1), torch.tensor([[0.5, 0.5]])
    )


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_items_without_a_label_have_the_fixed_weights(as_probabilities):
    given = logits_of(4, 5)
    labels = torch.tensor([1, -100, 2, -100])
    if as_probabilities:
        labels = torch.where(labels[:, None] >= 0, nn.functional.one_hot(labels.clamp(min=0), 5), 0).double()
    weights = [0.5, 0.25, 0.25]
    found = mean_of(given, labels, confidence="labels", weights=weights)
    fixed = mean_of(given, weights=weights)
    assert torch.allclose(found[1::2], fixed[1::2])
    assert not torch.allclose(found[::2], fixed[::2])


def test_fixed_weights_and_confidence_are_multiplied():
    given, labels = logits_of(3, 5), torch.tensor([0, 1, 2])
    confidence = torch.tensor(weights_by_labels(given, labels)) * torch.tensor([[2.0], [1.0], [0.0]])
    expected = transcription(given, (confidence / confidence.sum(0)).double(), "probabilities", 1.0)
    found = mean_of(given, labels, confidence="labels", weights=[2.0, 1.0, 0.0])
    assert torch.allclose(found, expected, atol=1e-6)


def test_by_entropy_a_teacher_that_is_sure_counts_more():
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.zeros(1, 3)
    found = mean_of([sure, unsure], confidence="entropy").softmax(dim=-1)
    low, high = (float(torch.special.entr(t.softmax(-1)).sum()) for t in (sure, unsure))
    weight = 1 - math.exp(low) / (math.exp(low) + math.exp(high))
    assert torch.allclose(found, weight * sure.softmax(-1) + (1 - weight) * unsure.softmax(-1))


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
@pytest.mark.parametrize("confidence", [None, "labels", "entropy"])
def test_extreme_and_masked_logits_give_no_nan(mean, confidence):
    huge = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=torch.float16)
    masked = torch.tensor([[0.0, -math.inf, 1.0], [1.0, -math.inf, -math.inf]])
    labels = torch.tensor([1, 1])
    found = mean_of([huge, masked, masked], labels, mean=mean, confidence=confidence)
    assert found.dtype == torch.float32
    assert not found.isnan().any()
    both = mean_of([masked, masked], labels, mean=mean, confidence=confidence)
    assert torch.equal(both.isinf(), masked.isinf())
    assert not both.isnan().any()


@pytest.mark.parametrize("confidence", [None, "labels", "entropy"])
def test_dense_outputs_have_a_weight_for_each_position(confidence):
    given = logits_of(2, 4, 5)
    labels = torch.randint(5, (2, 4))
    flat_ones = [t.flatten(0, 1) for t in given]
    expected = mean_of(flat_ones, labels.flatten(), confidence=confidence)
    assert torch.allclose(mean_of(given, labels, confidence=confidence), expected.view(2, 4, 5))


def test_one_teacher_alone_is_itself():
    given = logits_of(4, 5, count=1)
    expected = given[0].log_softmax(-1)
    assert torch.allclose(mean_of(given, torch.tensor([0, 1, 2, 3]), confidence="labels"), expected)


class Watch:
    kdengine_hook_version = 1

    def __init__(self):
        self.seen = []

    @kdengine.hookimpl
    def kdengine_on_teacher_output(self, context):
        self.seen.append((context.batch.inputs, context.output.logits))


def loader():
    return kdengine.loader(items(), 8)


def test_an_engine_takes_a_list_of_teachers_and_keeps_all_of_them_frozen():
    first, second = mlp(32, dropout=0.5).train(), mlp(24).train()
    before = [flat(first).clone(), flat(second).clone()]
    watch = Watch()
    trained = engine(teacher=[first, LiveTeacher(second)], plugins=[watch])
    trained.fit(loader(), epochs=1)
    assert not any(part.training for teacher in (first, second) for part in teacher.modules())
    assert not any(parameter.requires_grad for teacher in (first, second) for parameter in teacher.parameters())
    assert torch.equal(torch.cat(before), torch.cat([flat(first), flat(second)]))
    inputs, logits = watch.seen[0]
    expected = (first(inputs).softmax(-1) + second(inputs).softmax(-1)) / 2
    assert torch.allclose(logits.softmax(-1), expected)


def test_a_change_of_any_of_them_is_noticed():
    class Meddler:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            with torch.no_grad():
                context.fit.teacher[1][0].bias.add_(1.0)

    with pytest.raises(kdengine.ConfigurationError, match="changed during the fit"):
        engine(teacher=[mlp(32), mlp(24)], plugins=[Meddler()]).fit(loader(), epochs=1)


def test_each_may_have_its_own_input_transform_and_dtype():
    first, second = mlp(32), mlp(24)
    reference = copy.deepcopy(second).double()
    watch = Watch()
    scaled = LiveTeacher(second, dtype=torch.float64, transform=lambda inputs: (inputs - 0.5) / 2.0)
    engine(teacher=[first, scaled], plugins=[watch]).fit(loader(), epochs=1)
    inputs, logits = watch.seen[0]
    expected = (first(inputs).softmax(-1) + reference((inputs.double() - 0.5) / 2.0).softmax(-1)) / 2
    assert torch.allclose(logits.double(), expected.log())


def test_features_of_a_teacher_are_named_with_its_number():
    losses = {"first": Hint(student="1", teacher="0.1"), "second": Hint(student="1", teacher="1.1")}
    history = engine(teacher=[mlp(32), mlp(24)], losses=losses, weights={}).fit(loader(), epochs=1).history
    assert history[-1]["first"] > 0
    assert history[-1]["second"] > 0
    with pytest.raises(kdengine.ConfigurationError, match=r"no module '2\.1'"):
        engine(teacher=[mlp(32), mlp(24)], losses={"hint": Hint(student="1", teacher="2.1")}, weights={}).fit(
            loader(), epochs=1
        )


def test_teachers_of_different_classes_are_refused_with_what_each_gives():
    with pytest.raises(kdengine.ConfigurationError, match=r"teacher 0 \(8, 5\), teacher 1 \(8, 7\)"):
        engine(teacher=[mlp(32), mlp(24, classes=7)]).fit(loader(), epochs=1)


def test_the_classes_of_the_mean_may_be_mapped_to_those_of_the_student():
    wide = [mlp(32, classes=7), mlp(24, classes=7)]
    result = engine(mlp(classes=CLASSES), wide, classes="shared").fit(loader(), epochs=1)
    assert result.steps == 4


def test_caches_are_kept_by_each_for_itself(tmp_path):
    class Counting(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net, self.runs = mlp(width), 0

        def forward(self, inputs):
            self.runs += 1
            return self.net(inputs)

    def train(*teachers):
        student = mlp()
        engine(student, list(teachers)).fit(loader(), epochs=3)
        return flat(student)

    first, second = Counting(32), Counting(24)
    cached = [CachedTeacher(first, str(tmp_path / "a"), 32, per_epoch=False)]
    weights = train(*cached, CachedTeacher(second, str(tmp_path / "b"), 32, per_epoch=False))
    assert (first.runs, second.runs) == (4, 4)
    assert torch.allclose(weights, train(mlp(32), mlp(24)), rtol=0, atol=1e-6)
    half = [mlp(32), CachedTeacher(second, str(tmp_path / "b"), 32)]
    trained = engine(teacher=half, losses={"hint": Hint(student="1", teacher="0.1")}, weights={})
    with pytest.raises(kdengine.ConfigurationError, match="without live modules"):
        trained.fit(loader(), epochs=1)


def test_outputs_of_other_forms_are_read_as_the_engine_reads_them(tmp_path):
    class Odd(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.net = mlp(width)

        def forward(self, inputs):
            return {"scores": self.net(inputs)}

    cached = CachedTeacher(Odd(24), str(tmp_path), 32)
    trained = engine(Odd(8), [Odd(32), cached], output=lambda output: output["scores"])
    assert trained.fit(loader(), epochs=1).steps == 4
    with pytest.raises(kdengine.ConfigurationError, match="teacher 0 of the ensemble gave no logits, but a dict"):
        engine(teacher=[Odd(32)]).fit(loader(), epochs=1)


def test_an_evaluation_shows_the_teachers_no_labels():
    first, second = mlp(32), mlp(24)
    source = Ensemble([first, second], confidence="labels")
    test = kdengine.loader(items(), 32, shuffle=False)
    student = mlp()
    said = engine(student, source, metrics={"agreement": "agreement"}).fit(loader(), test, epochs=1).metrics
    inputs = items()[:][0]
    fair = (first(inputs).softmax(-1) + second(inputs).softmax(-1)).argmax(-1)
    assert said["agreement"] == pytest.approx(float((student(inputs).argmax(-1) == fair).float().mean()))


def test_labels_that_are_no_classes_are_refused():
    with pytest.raises(kdengine.ConfigurationError, match=r"needs class ids \(4,\) or probabilities \(4, 5\)"):
        mean_of(logits_of(4, 5), torch.zeros(4, 2), confidence="labels")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"members": []}, "at least one teacher"),
        ({"members": [3]}, "teacher 0 must be an nn.Module or a kdengine.TeacherSource, got int"),
        ({"members": [EMA()]}, r"teacher 0 \(EMA\) evolves"),
        ({"weights": [1.0]}, "expected 2 weights"),
        ({"weights": [1.0, -1.0]}, "none below 0"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": [1.0, math.nan]}, "expected 2 weights"),
        ({"mean": "median"}, "mean must be"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"confidence": "luck"}, "confidence must be"),
    ],
)
def test_what_makes_no_ensemble_is_refused(options, said):
    members = options.pop("members", [mlp(32), mlp(24)])
    with pytest.raises(kdengine.ConfigurationError, match=said):
        Ensemble(members, **options)


def test_what_is_no_teacher_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="a list of these or None, got str"):
        engine(teacher="resnet")


def test_the_student_under_several_learns_as_under_their_mean():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList([mlp(32), mlp(24)])

        def forward(self, inputs):
            return torch.stack([(member(inputs) / 2).softmax(-1) for member in self.members]).mean(0).log() * 2

    def train(teacher):
        student = mlp()
        engine(student, teacher, losses={"kd": KD(2.0), "ce": CE()}, weights={}).fit(loader(), epochs=3)
        return flat(student)

    several = train(Ensemble([mlp(32), mlp(24)], temperature=2.0))
    assert torch.allclose(several, train(Mean()), rtol=0, atol=1e-6)
