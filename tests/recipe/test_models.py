from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import kdengine
from kdengine.api import CheckpointError, ConfigurationError
from kdengine.recipe.models import load_weights, make_model

from .conftest import SMALL

FACTS: dict[str, Any] = {"classes": 10, "input_shape": (1, 8, 8), "input_dtype": torch.float32}


def net(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))


class Models:
    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_models(self):
        class Embedding(nn.Module):
            def __init__(self, classes: int) -> None:
                super().__init__()
                self.table = nn.Embedding(5, classes)

            def forward(self, ids):
                return self.table(ids).mean(dim=1)

        def words(text: str):
            return text

        def flat(classes: int):
            return nn.Flatten(0)

        def picky(input_shape: tuple[int, ...]):
            raise ValueError(f"no {input_shape}")

        return {"embedding": Embedding, "words": words, "flat": flat, "picky": picky}


def test_first_weights_are_a_function_of_seed_and_role(plan_of):
    plan = plan_of()

    def weights(bound, seed: int, role: str):
        torch.rand(3)
        return torch.cat([p.flatten() for p in make_model(bound, FACTS, seed=seed, role=role).parameters()])

    first = weights(plan.student, 0, "student")
    assert torch.equal(first, weights(plan.student, 0, "student"))
    assert not torch.equal(first, weights(plan.student, 1, "student"))
    assert not torch.equal(first, weights(plan.student, 0, "teacher"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["student.use=resnet8", "student.channels=3"], r"does not take the data's inputs of shape \(1, 8, 8\)"),
        (["student.use=flat"], r"gave logits of shape \(64,\)"),
        (["student.use=words", "student.text=x"], "gave a str, expected an nn.Module"),
        (["student.use=picky"], "cannot be made: no"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(plan_of, overrides, told):
    recipe = SMALL.replace(", hidden = [8] }", " }")
    with pytest.raises(ConfigurationError, match=told):
        make_model(plan_of(recipe, *overrides, plugins=[Models()]).student, FACTS, seed=0, role="student")


def test_inputs_may_be_whole_numbers(plan_of):
    recipe = SMALL.replace('student = { use = "mlp", hidden = [8] }', "student = { use = 'embedding' }")
    facts = {"classes": 3, "input_shape": (6,), "input_dtype": torch.int64}
    made = make_model(plan_of(recipe, plugins=[Models()]).student, facts, seed=0, role="student")
    assert made(torch.zeros(2, 6, dtype=torch.int64)).shape == (2, 3)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "state_dict", "model", "parallel"])
def test_weights_come_back_from_every_plain_kind_of_file(tmp_path, kind):
    trained, fresh = net(), net()
    state: dict[str, Any] = trained.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "parallel":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    else:
        torch.save(state if kind == "pth" else {kind: state, "epoch": 3}, path)
    load_weights(fresh, path, "teacher")
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in state.items())


def test_a_submodule_called_module_keeps_its_name(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    torch.save(Wrapper().state_dict(), tmp_path / "w.pth")
    load_weights(Wrapper(), tmp_path / "w.pth", "student")


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_code_in_a_pickle_is_refused_and_not_executed(tmp_path, name):
    trap = tmp_path / "executed"
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"0.weight": Evil(str(trap))}, protocol=2))
    torch.save({"0.weight": Evil(str(trap))}, tmp_path / "saved.pth")
    (tmp_path / name).write_bytes((tmp_path / "saved.pth").read_bytes())
    for path in (tmp_path / "raw.pth", tmp_path / name):
        with pytest.raises(CheckpointError):
            load_weights(net(), path, "teacher")
    assert not trap.exists()


def test_a_whole_pickled_model_is_refused_with_what_to_do(tmp_path):
    torch.save(net(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"runs no code from a checkpoint: save the state dict alone"):
        load_weights(net(), tmp_path / "w.pth", "teacher")


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    state = net(5).state_dict()
    state["more"] = torch.zeros(1)
    del state["1.bias"]
    torch.save(state, tmp_path / "w.pth")
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "w.pth", "teacher")
    for said in ("[teacher]", "missing 1.bias", "unexpected more", "0.weight is (5, 3), expected (4, 3)"):
        assert said in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.pth", None, "there is no checkpoint file"),
        ("w.pth", b"", "cut off"),
        ("w.safetensors", b"\x00" * 20, "cannot be read"),
        ("w.pth", b"garbage", "w.pth"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        load_weights(net(), tmp_path / name, "student")


def test_a_list_of_tensors_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="is no state dict"):
        load_weights(net(), tmp_path / "w.pth", "student")
