import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import kdengine
from kdengine.api import ConfigurationError
from kdengine.losses import Factor
from kdengine.testing import check_loss

from .common import (
    PATHS,
    STAGES,
    assert_finite_where_awkward,
    assert_gradient,
    course,
    features,
    fit,
    on_features,
    prepared,
    random,
)


def trained(channels=2, width=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU())


def test_the_kit_accepts_it():
    check_loss(Factor, sample=features((1, 3, 3), (2, 3, 3)), **PATHS)


def test_the_kit_accepts_trained_paraphrasers_of_several_pairs():
    sample = features({"a1": (1, 4, 4), "a2": (2, 2, 2)}, {"b1": (2, 2, 2), "b2": (2, 3, 3)})
    check_loss(Factor, sample=sample, student="a*", teacher="b*", p=2, paraphrasers=[trained(), trained(width=3)])


@pytest.mark.parametrize("weights", [(0.0, 1.0), (500.0, 0.0), (2.0, 3.0)])
def test_the_terms_follow_their_weights(weights):
    batch = on_features(random(3, 1, 3, 3), random(3, 2, 3, 3, seed=1))
    plain = prepared(Factor(**PATHS, transfer_weight=1.0), batch).per_item(batch)
    found = prepared(Factor(**PATHS, transfer_weight=weights[0], reconstruction_weight=weights[1]), batch)
    for (term, value), weight in zip(found.per_item(batch).items(), weights, strict=True):
        torch.testing.assert_close(value, weight * plain[term])


def run(layers, maps):
    """Convolutions, transposed or not, each followed by a leaky ReLU of slope 0.1, written out."""
    for layer in list(layers)[::2]:
        weight, bias = layer.weight, layer.bias
        if isinstance(layer, nn.ConvTranspose2d):  # with stride 1 and this padding: the flipped kernel
            weight = weight.flip(2, 3).transpose(0, 1)
        maps = F.conv2d(maps, weight, bias, padding=1)
        maps = torch.where(maps > 0, maps, 0.1 * maps)
    return maps


@pytest.mark.parametrize("p", [1, 2])
def test_the_terms_are_the_papers(p):
    batch = on_features(random(4, 3, 3, 3), random(4, 4, 3, 3, seed=1))
    loss = prepared(Factor(**PATHS, p=p), batch)
    part = loss.learned[0]
    student, teacher = (output.features["hidden"] for output in (batch.student, batch.teacher))
    wanted, ours = run(part.paraphraser, teacher), run(part.translator, student)
    assert wanted.shape == ours.shape == (4, 2, 3, 3)
    again = run(part.decoder, wanted)
    found = loss.per_item(batch)
    found = {term: value.detach() for term, value in found.items()}
    ours, wanted, again = (factors.detach() for factors in (ours, wanted, again))
    for item in range(4):
        x, y = (factors[item].flatten().tolist() for factors in (ours, wanted))
        gaps = [abs(a / math.hypot(*x) - b / math.hypot(*y)) ** p for a, b in zip(x, y, strict=True)]
        assert float(found["transfer"][item]) == pytest.approx(500 * sum(gaps) / len(gaps), rel=1e-10)
        errors = [(a - b) ** 2 for a, b in zip(teacher[item].flatten(), again[item].flatten(), strict=True)]
        assert float(found["reconstruction"][item]) == pytest.approx(float(sum(errors)) / len(errors), rel=1e-10)


def test_the_gradients_of_the_terms_are_separate():
    student = random(3, 2, 3, 3).requires_grad_()
    batch = on_features(student, random(3, 2, 3, 3, seed=1))
    loss = prepared(Factor(**PATHS), batch)
    part, terms = loss.learned[0], loss.per_item(batch)
    own = [*part.paraphraser.parameters(), *part.decoder.parameters()]
    for term, moved, still in (
        ("transfer", [student, *part.translator.parameters()], own),
        ("reconstruction", own, [student, *part.translator.parameters()]),
    ):
        given = torch.autograd.grad(terms[term].sum(), [*moved, *still], allow_unused=True)
        assert all(gradient.any() for gradient in given[: len(moved)])
        assert all(gradient is None for gradient in given[len(moved) :])


def test_the_gradient_is_right_with_a_trained_paraphraser():
    assert_gradient(Factor(**PATHS, paraphrasers=[trained()]), random(2, 2, 3, 3), random(2, 2, 3, 3, seed=1))


def test_a_trained_paraphraser_stays_as_it_is():
    given = trained()
    loss = Factor(**STAGES, paraphrasers=[trained(8, 2), trained(16, 3)])
    assert loss.terms == ("transfer",)
    fit(loss, epochs=1)
    assert not any(name.startswith("learned.0.paraphraser") for name, _ in loss.named_parameters())
    state = loss.train().state_dict()
    for at, module in enumerate((trained(8, 2), trained(16, 3))):
        for name, value in module.state_dict().items():
            torch.testing.assert_close(state[f"learned.{at}.paraphraser.module.{name}"], value)
    assert not loss.paraphrasers[0].training
    assert all(parameter.requires_grad for parameter in given.parameters())


def test_paraphrasers_of_one_fit_serve_in_another():
    first = Factor(**STAGES, transfer_weight=0.0)
    fit({"factor": first, "kd": kdengine.losses.KD()}, epochs=1)
    second = Factor(**STAGES, paraphrasers=first.paraphrasers)
    fit(second, epochs=1)
    maps = random(2, 8, 4, 4, dtype=torch.float32)
    torch.testing.assert_close(second.paraphrasers[0](maps), first.paraphrasers[0](maps))


@pytest.mark.parametrize(("rate", "width"), [(0.5, 3), (0.75, 4), (2.0, 12), (0.01, 1)])
def test_the_rate_gives_the_channels_of_the_factors(rate, width):
    batch = features((2, 2, 2), (6, 2, 2))(2, torch.Generator())
    loss = prepared(Factor(**PATHS, rate=rate), batch)
    assert loss.paraphrasers[0](batch.teacher.features["hidden"]).shape == (2, width, 2, 2)


def test_factors_of_other_sizes_are_pooled_and_pairs_add_up():
    student, teacher = ({"a": random(2, 3, 4, 4, seed=s), "b": random(2, 3, n, n, seed=s)} for s, n in ((0, 2), (2, 6)))
    batch = on_features(student, teacher)
    both = prepared(Factor(["a", "b"], ["a", "b"]), batch)
    expected = {"transfer": 0.0, "reconstruction": 0.0}
    for at, path in enumerate("ab"):
        single = prepared(Factor(path, path), batch)
        single.learned[0] = both.learned[at]
        expected = {term: total + single.per_item(batch)[term] for term, total in expected.items()}
    for term, total in expected.items():
        torch.testing.assert_close(both.per_item(batch)[term], total)


@pytest.mark.parametrize("options", [{}, {"p": 2}], ids=str)
def test_awkward_features_give_a_finite_value_and_gradient(options):
    assert_finite_where_awkward(lambda: Factor(**PATHS, **options), (3, 2, 4, 4), (3, 3, 2, 2))


def test_factors_of_zeros_cost_no_nan_and_get_no_gradient():
    batch = on_features(random(2, 2, 3, 3), random(2, 2, 3, 3, seed=1))
    loss = prepared(Factor(**PATHS), batch)
    for parameter in loss.learned[0].translator.parameters():
        nn.init.zeros_(parameter)
    terms = loss.per_item(batch)
    given = torch.autograd.grad(terms["transfer"].sum(), list(loss.learned[0].translator.parameters()))
    assert terms["transfer"].isfinite().all()
    assert not any(gradient.any() for gradient in given)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((6,), (3, 2, 2)), {}, "expected feature maps"),
        (((2, 2, 2), (3, 2, 2)), {"paraphrasers": []}, "0 paraphrasers were given for 1 pairs"),
        (((2, 2, 2), (3, 2, 2)), {"paraphrasers": [nn.Flatten()]}, r"the paraphraser gives \(2, 12\); expected"),
    ],
    ids=["vectors", "number", "factors"],
)
def test_what_does_not_fit_is_refused_with_loss_and_paths(shapes, options, message):
    batch = features(*shapes)(2, torch.Generator())
    with pytest.raises(
        ConfigurationError, match=rf"Factor: student 'hidden' \(2, .*\) and teacher 'hidden' .*: {message}"
    ):
        prepared(Factor(**PATHS, **options), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "factor: rate must be a finite number above 0, got 0.0"),
        ({"p": 3}, "factor: p must be 1 or 2, got 3"),
        ({"transfer_weight": -1.0}, "factor: transfer_weight must be a finite number of at least 0, got -1.0"),
        ({"reconstruction_weight": "1"}, "factor: reconstruction_weight must be a finite number .* got '1'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Factor(**PATHS, **options)


def test_a_fit_trains_the_paraphraser_and_then_lowers_the_transfer():
    first = Factor(**STAGES, transfer_weight=0.0)
    errors = course(first, term="own.reconstruction", lr=0.005)
    assert errors[-1] < 0.75 * errors[0]
    transfers = course(Factor(**STAGES, paraphrasers=first.paraphrasers), term="own.transfer", lr=0.01)
    assert transfers[-1] < 0.7 * transfers[0]


def test_the_paraphraser_can_be_trained_first_by_schedules():
    first = kdengine.Piecewise([(0.0, 0.0), (0.5, 500.0)], interpolation="constant")
    then = kdengine.Piecewise([(0.0, 1.0), (0.5, 0.0)], interpolation="constant")
    found = fit(Factor(**STAGES, transfer_weight=first, reconstruction_weight=then), epochs=4, lr=0.02).history
    transfers, errors = ([record[f"own.{term}"] for record in found] for term in ("transfer", "reconstruction"))
    assert transfers[0] == errors[-1] == 0
    assert transfers[-1] > 0 < errors[0]


def test_what_is_learned_trains_and_is_not_exported(tmp_path):
    loss = Factor(**STAGES)
    found = fit(loss, epochs=1, out=tmp_path / "run")
    exported = load_file(found.out / "student.safetensors")
    assert all(name.split(".")[0] in ("stage1", "stage2", "head") for name in exported)
    assert len(list(loss.parameters())) == 2 * 18
