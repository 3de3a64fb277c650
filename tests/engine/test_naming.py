"""Any label works; nothing in the records overwrites anything else."""

import json

import pytest
import torch
from torch import nn

import kdengine
from kdengine.api.errors import LossError
from kdengine.losses import CE, KD, Hint

STRANGE = ["kd.t4", "type", "keys", "training", "to", "forward", "losses", "a b", "temp/4", "[bold]", "ü", "%2E", "0"]
BATCHES = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(2)]


def net(width=6):
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3))


def engine(losses, **options):
    torch.manual_seed(0)
    given = {"loggers": [], "optimizer": lambda named: torch.optim.SGD([p for _, p in named], lr=0.1), "seed": 0}
    return kdengine.Engine(net(), net(8), losses=losses, **given | options)


@pytest.mark.parametrize("label", STRANGE)
def test_a_label_changes_no_number(label):
    plain = engine({"kd": KD(), "ce": CE()}).fit(BATCHES, epochs=2).history
    named = engine({label: KD(), "ce": CE()}).fit(BATCHES, epochs=2).history
    assert [record[label] for record in named] == [record["kd"] for record in plain]
    assert [record["loss"] for record in named] == [record["loss"] for record in plain]


@pytest.mark.parametrize("label", ["hint.deep", "type", "hint"])
def test_a_run_with_any_label_is_resumed_and_its_parameters_are_named_by_it(tmp_path, label):
    def fit(epochs, out):
        names = []

        def sgd(named):
            names.extend(name for name, _ in named)
            return torch.optim.SGD([p for _, p in named], lr=0.1, momentum=0.9)

        made = engine({label: Hint("0", "0"), "kd": KD()}, optimizer=sgd, out=out)
        return made.fit(BATCHES, epochs=epochs, resume="auto"), made.student.state_dict(), names

    whole, expected, names = fit(3, tmp_path / "whole")
    assert any(name.startswith(f"losses.{label}.") for name in names)
    fit(1, tmp_path / "parts")
    resumed, found, _ = fit(3, tmp_path / "parts")
    assert resumed.history == whole.history
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_labels_that_have_always_worked_keep_their_names_in_checkpoints():
    made = engine({"hint": Hint("0", "0"), "kd_2": KD(), "größe": CE()})
    objective = made._models_for(kdengine.Batch(*BATCHES[0]))[1]
    assert list(objective.modules) == ["hint", "kd_2", "größe"]


def test_labels_that_would_be_one_module_are_refused():
    with pytest.raises(kdengine.ConfigurationError, match=r"'a\.b', 'a%2Eb' cannot stand beside"):
        engine({"a.b": KD(), "a%2Eb": CE()}).fit(BATCHES, epochs=1)


@pytest.mark.parametrize("label", ["", " ", "a\nb", "\ud800", 3, None])
def test_a_label_that_nothing_can_show_is_refused(label):
    with pytest.raises(kdengine.ConfigurationError, match="expected printable text"):
        engine({label: KD()})


@pytest.mark.parametrize("name", ["", "a\n"])
def test_a_metric_has_a_name_that_can_be_shown(name):
    with pytest.raises(kdengine.ConfigurationError, match=r"metrics: .* is no name"):
        engine({"kd": KD()}, metrics={name: "top1"})


@pytest.mark.parametrize("name", ["loss", "lr", "step", "epoch", "kind", "items_per_second", "gradient_share.kd"])
def test_reserved_names_are_refused_before_training(name):
    with pytest.raises(LossError, match="reserved") as caught:
        engine({name: KD()})
    assert caught.value.place[1] == name
    with pytest.raises(kdengine.ConfigurationError, match=f"metrics: '{name}' is reserved"):
        engine({"kd": KD()}, metrics={name: "top1"})


class Scheduled(kdengine.Schedule):
    def value(self, progress):
        return 1.0


class Parts(kdengine.Loss):
    terms = ("soft", "hard")


@pytest.mark.parametrize(
    ("losses", "options"),
    [
        ({"kd": KD()}, {"metrics": {"kd": "agreement"}}),
        ({"kd": Parts(), "kd.soft": CE()}, {}),
        ({"kd": KD(temperature=Scheduled()), "kd.temperature": CE()}, {}),
        ({"kd": KD(), "weights.kd": CE()}, {"weights": {"kd": Scheduled()}}),
        ({"kd": KD(temperature=Scheduled())}, {"metrics": {"kd.temperature": "top1"}}),
    ],
    ids=["a metric", "a term", "a schedule", "the schedule of a weight", "a metric and a schedule"],
)
def test_two_things_of_one_name_are_refused_before_training(losses, options):
    with pytest.raises(LossError, match="choose another label"):
        engine(losses, **options)


def test_an_evaluation_function_overwrites_neither_training_nor_places(tmp_path):
    made = engine({"kd": KD()}, out=tmp_path / "run", monitor="loss")
    with pytest.warns(UserWarning, match=r"'loss'.*'evaluate\.loss'"):
        result = made.fit(BATCHES, lambda student: {"loss": 7.0, "step": 5.0, "mine": 1.0}, epochs=1)
    record = result.history[-1]
    assert record["loss"] == pytest.approx(record["kd"])
    assert (record["evaluate.loss"], record["evaluate.step"], record["mine"], record["step"]) == (7.0, 5.0, 1.0, 2)
    assert result.metrics == {"loss": 7.0, "evaluate.step": 5.0, "mine": 1.0}
    assert result.best["value"] == 7.0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "evaluate"] == [2]
