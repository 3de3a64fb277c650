"""Names are those of the model as its owner made it, whatever has been wrapped around it or a part of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import kdengine
from kdengine.engine import checkpoint
from kdengine.engine.student_file import write_weights
from kdengine.engine.wrappers import class_name, fitted, plain_state, unwrapped
from kdengine.losses import KD
from kdengine.recipe.models import load_weights
from tests.engine.common import CLASSES, INPUTS, engine, flat, items, mlp


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def parallel(module: nn.Module) -> nn.Module:
    """What DataParallel makes of a model, on a machine without accelerators."""
    return nn.DataParallel(module)


class Named(nn.Module):
    """A model with a part that its owner calls ``module``."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(INPUTS, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, inputs):
        return self.head(self.module(inputs))


def inside() -> nn.Module:
    model = mlp()
    model[3] = compiled(model[3])
    return model


WRAPPED = {
    "compiled": (lambda: compiled(mlp()), mlp),
    "DataParallel": (lambda: parallel(mlp()), mlp),
    "compiled in DataParallel": (lambda: parallel(compiled(mlp())), mlp),
    "a compiled part": (inside, mlp),
    "an average": (lambda: AveragedModel(mlp()), mlp),
    "a part called module": (Named, Named),
    "a compiled one with a part called module": (lambda: compiled(Named()), Named),
}


def loader():
    return kdengine.loader(items(), 8)


@pytest.mark.parametrize(("wrap", "make"), WRAPPED.values(), ids=WRAPPED)
def test_a_state_goes_by_plain_names_and_fits_the_model_in_its_wrapper_again(wrap, make):
    model = wrap()
    state = plain_state(model.state_dict(), model)
    assert set(state) == set(make().state_dict())
    model.load_state_dict(fitted(state, model), strict=not isinstance(model, AveragedModel))
    again = fitted(model.state_dict(), make())
    assert set(make().state_dict()) <= set(again)
    assert (class_name(model), type(unwrapped(model))) == (type(make()).__name__, type(make()))


@pytest.mark.parametrize("ema", [None, 0.9], ids=["the student", "its average"])
def test_the_export_of_a_wrapped_student_fits_the_model_that_was_made(tmp_path, ema):
    student = compiled(mlp())
    result = engine(student, ema=ema, out=tmp_path / "run", checkpoint_every=2).fit(loader(), epochs=1)
    run, fresh = kdengine.load_run(tmp_path / "run"), mlp()
    fresh.load_state_dict(run.student())
    assert torch.equal(flat(fresh), flat(result.student))
    again = compiled(mlp())
    again.load_state_dict(run.student(again))
    assert torch.equal(flat(again), flat(fresh))
    load_weights(compiled(mlp()), tmp_path / "run" / "student.safetensors", "student")


@pytest.mark.parametrize("ema", [None, 0.9], ids=["the student", "its average"])
@pytest.mark.parametrize("order", [(compiled, lambda model: model), (lambda model: model, compiled)])
def test_a_fit_goes_on_with_a_wrapper_put_around_or_taken_away(tmp_path, order, ema):
    def fit(student, out, epochs, resume=None):
        options = {"ema": ema, "seed": 0, "losses": {"kd": KD()}, "weights": {}}
        return engine(student, out=out, **options).fit(loader(), epochs=epochs, resume=resume).student

    whole = fit(mlp(), tmp_path / "whole", 2)
    fit(order[0](mlp()), tmp_path / "parts", 1)
    assert torch.equal(flat(fit(order[1](mlp()), tmp_path / "parts", 2, resume=True)), flat(whole))


def test_a_checkpoint_and_an_export_by_the_names_of_an_earlier_version_are_read(tmp_path):
    def fit(student, epochs, resume=None):
        return engine(student, out=tmp_path / "run", seed=0).fit(loader(), epochs=epochs, resume=resume)

    fit(mlp(), 1)
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        tree, meta = checkpoint.load(path)
        tree["student"] = {f"_orig_mod.{name}": value for name, value in tree["student"].items()}
        meta["fit"]["student"]["class"] = "OptimizedModule"
        checkpoint.save(path.parent, 4, tree, meta=meta, replace=True)
    result = fit(mlp(), 2, resume=True)
    file = tmp_path / "run" / "student.safetensors"
    for prefix in ("_orig_mod.", "module._orig_mod."):
        write_weights(file, {prefix + name: tensor for name, tensor in result.student.state_dict().items()})
        fresh = mlp()
        fresh.load_state_dict(kdengine.load_run(tmp_path / "run").student(fresh))
        assert torch.equal(flat(fresh), flat(result.student))
        load_weights(mlp(), file, "student")


def test_names_that_a_model_does_not_have_stay_as_they_are():
    assert fitted({"other.weight": 1, "module.0.weight": 2}, mlp()) == {"other.weight": 1, "0.weight": 2}
