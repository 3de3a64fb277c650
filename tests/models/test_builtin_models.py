"""Builtin models: structure, sizes and names."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdengine.api import ConfigurationError
from kdengine.engine.features import Capture
from kdengine.models import RESNETS, resnet
from kdengine.models.mlp import MLP
from kdengine.models.torchvision import replace_heads, torchvision
from kdengine.models.tutorial import TutorialStudent, TutorialTeacher


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("resnet20", 10, 0.27),  # He et al. 2016, table 6
        ("resnet32", 10, 0.46),
        ("resnet44", 10, 0.66),
        ("resnet56", 10, 0.85),
        ("resnet110", 10, 1.7),
        ("resnet8x4", 100, 1.23),  # RepDistiller
        ("resnet32x4", 100, 7.43),
    ],
)
def test_resnets_have_the_published_size(name, classes, millions):
    assert parameters(getattr(resnet, name)(classes=classes)) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_have_as_many_layers_as_they_say(name):
    model = getattr(resnet, name)()
    weighted = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in path
    ]
    assert len(weighted) == int(name.removeprefix("resnet").removesuffix("x4"))
    assert [path for path, _ in model.named_children()] == ["conv1", "bn1", "layer1", "layer2", "layer3", "fc"]
    assert getattr(resnet, name).__doc__.startswith(f"CIFAR ResNet of {len(weighted)} layers")


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (2, 5)])
def test_a_resnet_takes_any_size(channels, size):
    model = resnet.resnet8(channels=channels, classes=7)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_a_resnet_of_ones_own_widths():
    model = resnet.CifarResNet(14, (4, 4, 8, 16), channels=1)
    assert [model.get_submodule(path)[0].conv1.out_channels for path in ("layer1", "layer2", "layer3")] == [4, 8, 16]
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ConfigurationError, match=r"widths are those of the stem and of three stages, got \[4, 8\]"):
        resnet.CifarResNet(8, (4, 8))


def test_stages_halve_the_resolution():
    model = resnet.resnet8()
    hidden = torch.randn(1, 3, 32, 32)
    shapes = []
    for stage in (model.conv1, model.layer1, model.layer2, model.layer3):
        hidden = stage(hidden)
        shapes.append(tuple(hidden.shape[1:]))
    assert shapes == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_a_captured_feature_is_not_overwritten():
    model, captured = resnet.resnet8().eval(), {}
    for path in ("bn1", "layer1", "layer1.0.bn2", "layer1.0.relu"):
        model.get_submodule(path).register_forward_hook(
            lambda _, __, value, path=path: captured.update({path: (value, value.clone())})
        )
    model(torch.randn(2, 3, 8, 8))
    assert len(captured) == 4
    for value, copy in captured.values():
        assert torch.equal(value, copy)


def captured(model, paths, inputs):
    """Features as a fit captures them, from the second forward on."""
    capture = Capture(model, {"loss": paths}, "student")
    capture.attach()
    for _ in range(2):
        capture.start()
        outputs = model(inputs)
        found = capture.take()
    capture.remove()
    return found, outputs


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("model", "block", "last"),
    [
        (resnet.resnet14, "layer1.0", "bn2"),
        (resnet.resnet14, "layer3.1", "bn2"),
        (resnet.resnet14, "layer2.0", "bn2"),
        (lambda: torchvision("resnet18", classes=3), "layer3.1", "bn2"),
        (lambda: torchvision("resnet50", classes=3), "layer2.0", "bn3"),
    ],
    ids=["the first", "the last", "one with a convolution as its shortcut", "basic", "a bottleneck"],
)
def test_the_input_of_a_blocks_relu_is_the_block_before_its_activation(model, block, last, training):
    torch.manual_seed(0)
    model = model().train(training)
    shortcut = f"{block}.downsample" if model.get_submodule(block).downsample is not None else f"{block}:input"
    paths = [f"{block}.relu:input", f"{block}.{last}", shortcut, block]
    found, outputs = captured(model, paths, torch.randn(2, 3, 32, 32))
    before = found[f"{block}.{last}"] + found[shortcut]
    assert torch.equal(found[f"{block}.relu:input"], before)
    assert torch.equal(found[block], before.relu())
    assert (before < 0).any()
    found[f"{block}.relu:input"].sum().backward()
    assert model.conv1.weight.grad.any()
    assert outputs.requires_grad


def test_the_module_of_the_activation_changes_no_name_and_no_result():
    torch.manual_seed(0)
    model = resnet.resnet14().eval()
    assert not [name for name in model.state_dict() if "relu" in name]
    inputs = torch.randn(2, 3, 16, 16)
    hidden = F.relu(model.bn1(model.conv1(inputs)))
    for block in [*model.layer1, *model.layer2, *model.layer3]:
        branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(hidden)))))
        hidden = F.relu(branch + block.downsample(hidden))
    assert torch.equal(model(inputs), model.fc(hidden.mean(dim=(-2, -1))))


def test_every_published_resnet_says_where_its_last_blocks_are():
    for name in RESNETS:
        factory = getattr(resnet, name)
        last = len(factory().layer1) - 1
        assert f"layer1.{last}.relu:input" in factory.__doc__


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ConfigurationError, match=rf"6n \+ 2.*{depth}"):
        resnet.CifarResNet(depth, (16, 16, 32, 64))


@pytest.mark.parametrize(("model", "size"), [(TutorialTeacher, 62_006), (TutorialStudent, 37_406)])
def test_tutorial_networks(model, size):
    assert parameters(model()) == size
    assert model(classes=4, channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 4)


def test_mlp_flattens_and_names_its_hidden_layers():
    model = MLP(hidden=[20, 30], input_shape=(1, 8, 8), classes=5)
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 5)
    assert model.get_submodule("hidden.1")(torch.randn(3, 20)).shape == (3, 30)
    assert parameters(model) == 64 * 20 + 20 + 20 * 30 + 30 + 30 * 5 + 5


def test_mlp_without_hidden_layers_is_linear():
    model = MLP(hidden=[], input_shape=[4], classes=2)
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(model(inputs), inputs @ model.fc.weight.T + model.fc.bias)


def test_mlp_drops_only_while_training():
    model = MLP(hidden=[500], input_shape=[4], classes=2, dropout=0.5)
    hidden = model.hidden.train()(torch.rand(1, 4))
    assert (hidden == 0).float().mean() > (model.hidden.eval()(torch.rand(1, 4)) == 0).float().mean()


@pytest.mark.parametrize("make", [lambda: resnet.resnet8(), TutorialStudent, lambda: MLP([4], [4], 2)])
def test_models_travel_to_another_process(make):
    assert parameters(pickle.loads(pickle.dumps(make()))) == parameters(make())


def test_torchvision_by_name():
    assert torchvision("resnet18", classes=3).fc.out_features == 3


def test_torchvision_unknown_names_get_the_nearest():
    with pytest.raises(ConfigurationError, match=r"did you mean 'resnet18'\?"):
        torchvision("resnt18", classes=3)
    with pytest.raises(ConfigurationError, match=r"IMAGENET1K_V1"):
        torchvision("resnet18", classes=3, weights="IMAGENET_V1")


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_pretrained_head_is_replaced(name):
    model = torchvision(name, classes=1000).eval()
    replace_heads(model, 1000, 7)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
