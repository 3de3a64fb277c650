import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdengine.api import ConfigurationError
from kdengine.engine.engine import Engine
from kdengine.losses import OFD
from kdengine.losses.hints.ofd import expected_negative
from kdengine.losses.hints.teacher_norms import normalization_at
from kdengine.models.resnet import resnet8, resnet14, resnet20, resnet56
from kdengine.testing import check_loss
from tests.losses.papers import hints

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

pytestmark = pytest.mark.filterwarnings("ignore:ofd compares features before the activation")


def normalization(channels, seed=0):
    module = nn.BatchNorm2d(channels)
    with torch.no_grad():
        module.weight.copy_(random(channels, seed=seed))
        module.bias.copy_(random(channels, seed=seed + 1))
    return module.requires_grad_(False)


def teacher(**channels):
    """A model with a batch normalization at each path."""
    return nn.ModuleDict({name: normalization(width, at) for at, (name, width) in enumerate(channels.items())})


def test_the_kit_accepts_it():
    check_loss(OFD, sample=features((2, 3, 3), (3, 3, 3), model=teacher(hidden=3)), **PATHS)


def test_the_kit_accepts_several_pairs_of_different_sizes_that_are_normalized_by_themselves():
    sample = features({"a1": (1, 4, 4), "a2": (2, 2, 2)}, {"b1": (2, 2, 2), "b2": (1, 3, 3)}, model=teacher(b1=2, b2=1))
    check_loss(OFD, sample=sample, student="a*", teacher="b*", norm="group")


@pytest.mark.parametrize("options", [{}, {"norm": "none"}, {"margin": -0.5}], ids=str)
def test_the_gradient_is_right_for_every_option(options):
    assert_gradient(OFD(**PATHS, **options), random(3, 2, 3, 3), random(3, 3, 3, 3, seed=1), teacher(hidden=3))


def normal(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (0.7, 0.3), (-1.2, 2.0), (2.0, 0.8), (-5.0, 0.1)])
def test_the_margin_is_the_mean_of_the_negative_part_of_a_normal(mu, sigma):
    steps = 200_000
    width = (abs(mu) + 12 * sigma) / steps
    points = [-(at + 0.5) * width for at in range(steps)]
    density = [normal((x - mu) / sigma) / sigma for x in points]
    expected = sum(x * d for x, d in zip(points, density, strict=True)) / sum(density)
    found = expected_negative(torch.tensor([mu]).double(), torch.tensor([sigma]).double())
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_the_margin_is_finite_and_not_positive_for_any_normalization():
    mu = torch.tensor([1e4, -1e4, 1e8, 0.0, 5.0, -5.0, 3.0, 1e-30])
    sigma = torch.tensor([1.0, 1.0, 1e-8, 0.0, 0.0, 0.0, 1e-30, 1e-30])
    found = expected_negative(mu, sigma)
    assert found.isfinite().all()
    assert (found <= 0).all()
    assert found[1] == -1e4
    assert found[5] == -5


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_value_is_the_partial_squared_distance_to_the_margin_relu(norm):
    model = teacher(hidden=3)
    batch = on_features(random(4, 2, 3, 3), random(4, 3, 3, 3, seed=1), model=model)
    loss = prepared(OFD(**PATHS, norm=norm), batch)
    (convolution, *_) = loss.learned[0].connector
    projected = torch.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0], batch.student.features["hidden"])
    if norm == "batch":
        mean, variance = (reduce(projected, (0, 2, 3), True) for reduce in (torch.mean, torch.var))
        variance = projected.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        projected = (projected - mean) / (variance + 1e-5).sqrt()
    totals = []
    for item in range(4):
        total = 0.0
        for channel in range(3):
            mu, sigma = float(model["hidden"].bias[channel]), abs(float(model["hidden"].weight[channel]))
            below = 0.5 * math.erfc(mu / sigma / math.sqrt(2))
            margin = mu - sigma * normal(mu / sigma) / below
            ours, theirs = projected[item, channel], batch.teacher.features["hidden"][item, channel]
            for s, t in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True):
                target = max(t, margin)
                total += 0.0 if s <= target <= 0 else (s - target) ** 2
        totals.append(total)
    found = loss.value(batch) if norm == "batch" else loss.per_item(batch)
    expected = torch.tensor(sum(totals) / 4 if norm == "batch" else totals, dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-6, atol=0.0)


def test_a_student_below_a_negative_target_costs_nothing_and_has_no_gradient():
    target = torch.full((2, 1, 2, 2), -0.1).double()
    student = torch.full((2, 1, 2, 2), -7.0).double().requires_grad_()
    batch = on_features(student, target)
    loss = prepared(OFD(**PATHS, norm="none", margin=-1.0), batch)
    nn.init.ones_(loss.learned[0].connector[0].weight)
    value = loss.per_item(batch).sum()
    assert value == 0
    assert not torch.autograd.grad(value, student)[0].any()


def test_a_pair_counts_half_of_the_next():
    paths = ["a", "b", "c"]
    ours, theirs = ({path: random(3, 2, 2, 2, seed=at + seed) for at, path in enumerate(paths)} for seed in (0, 3))
    batch = on_features(ours, theirs)
    together = prepared(OFD(paths, paths, margin=-0.5, norm="none"), batch)
    parts = []
    for learned, path in zip(together.learned, paths, strict=True):
        single = prepared(OFD(path, path, margin=-0.5, norm="none"), batch)
        single.learned[0] = learned
        parts.append(single.per_item(batch))
    torch.testing.assert_close(together.per_item(batch), parts[0] / 4 + parts[1] / 2 + parts[2])


def test_only_the_batch_norm_makes_the_value_depend_on_the_batch():
    assert OFD(**PATHS).scope == "batch"
    assert OFD(**PATHS, norm="group").scope == OFD(**PATHS, norm="none").scope == "item"


def test_one_item_with_one_position_is_finite():
    batch = on_features(random(1, 2, 1, 1).requires_grad_(), random(1, 3, 1, 1, seed=1), model=teacher(hidden=3))
    loss = prepared(OFD(**PATHS), batch)
    leaves = [batch.student.features["hidden"], *loss.parameters()]
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.value(batch), leaves))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_awkward_features_give_a_finite_value_and_gradient(norm):
    assert_finite_where_awkward(
        lambda: OFD(**PATHS, norm=norm), (3, 2, 4, 4), (3, 3, 4, 4), model=teacher(hidden=3), weight=0.001
    )


def residual(width):
    block = nn.Module()
    block.conv1, block.bn1 = nn.Conv2d(width, width, 3), normalization(width, 4)
    block.conv2, block.bn2 = nn.Conv2d(width, width, 3), normalization(width, 6)
    block.downsample = nn.Sequential(nn.Conv2d(width, width, 1), normalization(width, 8))
    return block


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("stem.1", "stem.1"),
        ("stem", "stem.1"),
        ("stem.2", "stem.1"),
        ("stem.2:input", "stem.1"),
        ("layer", "layer.1.bn2"),
        ("layer.0", "layer.0.bn2"),
        ("layer.0.bn1", "layer.0.bn1"),
        ("tail.2:input", "tail.1.1"),
    ],
)
def test_the_batch_normalization_is_found_by_the_features_path(path, expected):
    model = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(1, 3, 3), normalization(3), nn.ReLU(), nn.MaxPool2d(2)),
            "layer": nn.Sequential(residual(3), residual(3)),
            "tail": nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(3, 3, 1), normalization(3, 2)), nn.ReLU()),
        }
    )
    given = features({"hidden": (3, 2, 2)}, {path: (3, 2, 2)}, model=model)(2, torch.Generator())
    found = prepared(OFD("hidden", path), given).learned[0].margins
    module = model.get_submodule(expected)
    torch.testing.assert_close(found.flatten(), expected_negative(module.bias, module.weight.abs()).detach().double())


class Block(nn.Module):
    """What a block of another library holds; in which order it runs is its own."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def numbered(*names):
    """Normalizations of their own, and activations, by name."""
    return {name: normalization(3, at) if name.startswith("bn") else nn.ReLU() for at, name in enumerate(names)}


BLOCKS = {
    "behind all": (Block(**numbered("bn1", "bn2", "relu"), downsample=nn.Identity()), "relu", "bn2"),
    "the last of several": (Block(**numbered("bn1", "act1", "bn2", "act2")), "act2", "bn2"),
    "of one": (Block(**numbered("relu", "bn"), downsample=nn.Sequential(normalization(3, 9))), "relu", "bn"),
}
"""A block, its activation, and the normalization before that."""


@pytest.mark.parametrize(("block", "activation", "expected"), BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("end", ["", ":input"])
def test_the_last_activation_of_a_block_runs_behind_its_last_normalization(block, activation, expected, end):
    model = nn.ModuleDict({"layer": nn.Sequential(block)})
    assert normalization_at(model, f"layer.0.{activation}{end}") is block.get_submodule(expected)


@pytest.mark.parametrize(
    ("parts", "activation"),
    [(("bn1", "relu", "bn2"), "relu"), (("bn1", "bn2", "act1", "act2"), "act1"), (("act1", "bn1", "bn2"), "act1")],
    ids=str,
)
def test_an_activation_that_may_run_behind_several_normalizations_is_not_guessed(parts, activation):
    model = nn.ModuleDict({"layer": Block(**numbered(*parts))})
    given = features({"hidden": (3, 2, 2)}, {f"layer.{activation}:input": (3, 2, 2)}, model=model)
    batch = given(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=r"'layer\.bn1', 'layer\.bn2'; name the one .* 'layer\.bn2'"):
        prepared(OFD("hidden", f"layer.{activation}:input"), batch)
    found = prepared(OFD("hidden", f"layer.{activation}:input", margin="layer.bn2"), batch).learned[0].margins
    second = model["layer"].bn2
    torch.testing.assert_close(found.flatten(), expected_negative(second.bias, second.weight.abs()).double())


@pytest.mark.parametrize("path", ["layer1.0.downsample", "layer1.0.conv1:input", "layer1.0.bn2:input", "fc:input"])
def test_what_is_no_activation_of_a_block_has_no_normalization_before_it(path):
    with pytest.raises(ConfigurationError, match="no batch normalization"):
        normalization_at(resnet14(), path)


def sum_before(seen, block):
    return seen[f"{block}.bn2"] + seen[f"{block}.downsample"]


def test_on_resnets_it_compares_the_sums_that_the_published_code_compares():
    torch.manual_seed(0)
    student, teacher = resnet8().double(), resnet14().double().requires_grad_(False).eval()
    with torch.no_grad():
        for at, part in enumerate(module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)):
            part.weight.copy_(random(len(part.weight), seed=at).abs() + 0.1)
            part.bias.copy_(random(len(part.bias), seed=at + 50))
    paths = [f"layer{stage}" for stage in (1, 2, 3)]
    loss = OFD("layer?.0.relu:input", "layer?.1.relu:input", norm="none")
    engine = Engine(student, teacher, losses=[loss], loggers=[], device="cpu")
    images = random(3, 3, 8, 8)
    found = engine.objective(images)
    seen = [{}, {}]
    for model, kept in zip((student, teacher), seen, strict=True):
        for name, module in model.named_modules():
            module.register_forward_hook(lambda _, __, output, name=name, kept=kept: kept.update({name: output}))
        model(images)
    expected = 0.0
    for at, path in enumerate(paths):
        norm = teacher.get_submodule(path)[1].bn2
        target = hints.margin_relu(sum_before(seen[1], f"{path}.1"), hints.ofd_margin(norm.bias, norm.weight.abs()))
        projected = loss.learned[at].connector(sum_before(seen[0], f"{path}.0"))
        expected = expected + 0.5 ** (2 - at) * hints.partial_l2(projected, target).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=0)
    ours, papers = (torch.autograd.grad(value, student.conv1.weight)[0] for value in (found, expected))
    torch.testing.assert_close(ours, papers, rtol=1e-5, atol=0.0)


def test_the_branch_without_its_shortcut_would_be_another_loss():
    torch.manual_seed(0)
    student, teacher = resnet20(), resnet56().requires_grad_(False)
    images = random(2, 3, 32, 32).float()

    def gradient(path):
        torch.manual_seed(1)
        loss = OFD(f"layer?.2.{path}", f"layer?.8.{path}", margin=[f"layer{stage}.8.bn2" for stage in (1, 2, 3)])
        value = Engine(student, teacher, losses=[loss], loggers=[], device="cpu").objective(images)
        return value.item(), torch.autograd.grad(value, student.conv1.weight)[0].flatten()

    (published, slope), (branch, other) = gradient("relu:input"), gradient("bn2")
    assert published > 2 * branch
    assert torch.nn.functional.cosine_similarity(slope, other, dim=0) < 0.8


@pytest.mark.parametrize("path", ["stem.0", "stem.3", "head:input", "bare"])
def test_without_a_batch_normalization_the_margin_must_be_given(path):
    stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 3, 1))
    model = nn.ModuleDict({"stem": stem, "bare": nn.Conv2d(3, 3, 1), "head": nn.Linear(3, 3)})
    given = features({"hidden": (3, 2, 2)}, {path: (3, 2, 2)}, model=model)(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=rf"OFD: student 'hidden' .* teacher '{path}' .* margin"):
        prepared(OFD("hidden", path), given)
    assert (prepared(OFD("hidden", path, margin=-0.25), given).learned[0].margins == -0.25).all()


def test_the_batch_normalization_can_be_named():
    model = nn.ModuleDict({"hidden": nn.Conv2d(3, 3, 1), "norm": normalization(3)})
    given = features((3, 2, 2), (3, 2, 2), model=model)(2, torch.Generator())
    found = prepared(OFD(**PATHS, margin="norm"), given).learned[0].margins.flatten()
    expected = expected_negative(model["norm"].bias, model["norm"].weight.abs()).detach()
    torch.testing.assert_close(found, expected.double())
    for margin, message in (("nrm", "the teacher has no module 'nrm'"), (["norm"] * 2, "names 2 batch .* for 1 pairs")):
        with pytest.raises(ConfigurationError, match=message):
            prepared(OFD(**PATHS, margin=margin), given)


@pytest.mark.parametrize(
    ("student", "given", "message"),
    [
        ((6,), teacher(hidden=3), "expected feature maps"),
        ((3, 2, 2), teacher(hidden=5), "has 5 channels, the feature 3"),
        ((3, 2, 2), None, "no teacher's module"),
    ],
    ids=["vectors", "channels", "no module"],
)
def test_what_does_not_fit_is_refused_with_loss_and_paths(student, given, message):
    batch = features(student, (3, 2, 2), model=given)(2, torch.Generator())
    with pytest.raises(ConfigurationError, match=rf"OFD: student 'hidden' \(2, .* teacher 'hidden' .*: .*{message}"):
        prepared(OFD(**PATHS), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.5}, "ofd: margin must be at most 0, got 0.5"),
        ({"margin": float("nan")}, "ofd: margin must be a finite number, got nan"),
        ({"norm": "layer"}, "ofd: norm must be 'batch', 'group' or 'none', got 'layer'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        OFD(**PATHS, **options)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_fit_lowers_it(norm):
    losses = course(OFD(["stage1.1", "stage2.1"], ["stage1.1", "stage2.1"], norm=norm))
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_learned_trains_and_is_not_exported(tmp_path):
    loss = OFD(**STAGES)
    found = fit(loss, epochs=1, out=tmp_path / "run")
    exported = load_file(found.out / "student.safetensors")
    assert all(name.split(".")[0] in ("stage1", "stage2", "head") for name in exported)
    assert any(bool((part.connector[1].bias != 0).any()) for part in loss.learned)
