"""What every builtin component owes its users: it can be loaded, made and understood."""

import importlib
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import pydantic
import pytest

from kdengine.api import Logger, Metric, Schedule
from kdengine.api.hooks import CONTRIBUTIONS
from kdengine.api.transform import BatchTransform

PACKAGES = ("schedules", "metrics", "models", "data", "loggers", "optimizers", "projectors")
EXAMPLES = {
    "cifar_resnet": {"depth": 8, "widths": [4, 4, 8, 16]},
    "constant": {"value": 1.0},
    "linear": {"start": 1.0, "end": 0.0},
    "cosine": {"start": 1.0, "end": 0.0},
    "warmup": {"value": 1.0},
    "step": {"start": 1.0, "factor": 0.5, "every": 1},
    "piecewise": {"points": [[0.0, 1.0]]},
    "on_metric": {"metric": "top1", "start": 1.0, "factor": 0.5, "patience": 1},
    "mlp": {"hidden": [4], "input_shape": [4], "classes": 2},
    "torchvision": {"name": "squeezenet1_1", "classes": 2},
    "digits": {"split": "test"},
    "normalize": {"mean": [0.5], "std": [0.5]},
    "random_crop": {"size": 4, "padding": 1},
    "random_resized_crop": {"size": [4, 4]},
    "random_rotation": {"degrees": 10.0},
    "resize": {"size": 4},
    "center_crop": {"size": 4},
    "mixup": {"classes": 3},
    "cutmix": {"classes": 3},
}
SHAPED = {"auto", "linear", "conv1x1"}
ELSEWHERE = {"cifar10", "cifar100", "image_folder"}  # need data: see tests/data
KINDS = {"schedules": Schedule, "metrics": Metric, "loggers": Logger}


def contributions():
    for package in PACKAGES:
        module = importlib.import_module(f"kdengine.{package}")
        for hook in CONTRIBUTIONS:
            if hasattr(module, hook):
                for name, target in getattr(module, hook)().items():
                    yield hook.removeprefix("kdengine_"), name, target


ALL = list(contributions())
OURS = [item for item in ALL if item[0] != "optimizers"]
IDS = [f"{kind}-{name}" for kind, name, _ in OURS]


def load(target):
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def test_every_package_is_a_plugin_that_offers_something():
    for package in PACKAGES:
        module = importlib.import_module(f"kdengine.{package}")
        assert module.kdengine_hook_version == 1
    assert len(ALL) == len({(kind, name) for kind, name, _ in ALL}) > 40


@pytest.mark.parametrize(("kind", "name", "target"), OURS, ids=IDS)
def test_component_can_be_made(kind, name, target):
    if name in ELSEWHERE:
        pytest.skip("needs data that is not here; its own tests make some")
    if kind == "projectors":
        vectors, tokens, maps = ((4,), (6,)), ((5, 4), (7, 4)), ((4, 2, 2), (6, 2, 2))
        shapes = {"linear": vectors, "mlp": vectors, "tokens": tokens, "sequence": tokens, "resize": tokens}
        assert load(target)(*shapes.get(name, maps))
        return
    made = load(target)(**EXAMPLES.get(name, {}))
    assert isinstance(made, KINDS.get(kind, object))
    if name in ("mixup", "cutmix"):
        assert isinstance(made, BatchTransform)


@pytest.mark.parametrize(("kind", "name", "target"), OURS, ids=IDS)
def test_every_argument_is_typed_and_documented(kind, name, target):
    component = load(target)
    text = inspect.getdoc(component)
    hints = typing.get_type_hints(component.__init__ if isinstance(component, type) else component)
    assert text
    assert text[0].isupper() or text.startswith(("``", "("))
    for argument in inspect.signature(component).parameters.values():
        assert argument.kind is argument.POSITIONAL_OR_KEYWORD, argument
        assert argument.name in hints, f"{argument} has no type"
        pydantic.TypeAdapter(hints[argument.name])  # what a recipe's value is checked with
        assert f"    {argument.name}: " in text, f"{argument.name} is not in the docstring's Args"


def test_optimizers_are_torchs():
    import torch

    for kind, _, target in ALL:
        if kind == "optimizers":
            assert issubclass(load(target), torch.optim.Optimizer)
            assert load(target)([torch.nn.Parameter(torch.zeros(1))], lr=0.1).defaults["lr"] == 0.1


def test_offering_components_imports_nothing_heavy(tmp_path: Path):
    code = f"""
import importlib, json, sys
for package in {PACKAGES!r}:
    importlib.import_module("kdengine." + package)
print(json.dumps([name for name in ("torchvision", "sklearn", "rich", "PIL") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == []
