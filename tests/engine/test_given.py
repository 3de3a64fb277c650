"""Teacher and student with inputs of their own, and errors that say which model could not take what it was given."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdengine
from kdengine.api.errors import InputsError
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import CE, KD, Hint
from tests.engine.common import CLASSES, INPUTS, engine, flat, items, mlp, sgd

IDS = torch.randint(9, (8, 5), generator=torch.Generator().manual_seed(0))
MAPPING = {"input_ids": IDS, "token_type_ids": torch.ones_like(IDS), "labels": IDS[:, 0] % 3}


class Tokens(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        torch.manual_seed(width)
        self.embed, self.head = nn.Embedding(10, width), nn.Linear(width, 3)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).mean(dim=1))


class Typed(Tokens):
    def forward(self, input_ids, token_type_ids):
        return super().forward((input_ids + token_type_ids) % 10)


class Anything(Tokens):
    def forward(self, input_ids, **kwargs):
        return super().forward(input_ids)


def own(inputs):
    return {"input_ids": inputs["input_ids"]}


def distil(student, teacher, item, **options) -> kdengine.Result:
    return engine(student, teacher, losses={"kd": KD()}, weights={}, **options).fit([item], epochs=1)


@pytest.mark.filterwarnings("ignore:Engine.objective")
def test_each_model_gets_inputs_of_its_own_wherever_it_runs():
    seen = []

    def noted(inputs):
        seen.append(set(inputs))
        return own(inputs)

    student, alone = Tokens(), Tokens()
    losses = {"kd": KD(), "hint": Hint("embed", "embed")}
    metrics = {"top1": "top1", "agreement": "agreement"}
    options = {"losses": losses, "metrics": metrics, "weights": {"hint": 0.0}, "gradient_shares": True, "ema": 0.5}
    trained = engine(student, Typed(4), student_inputs=noted, **options)
    result = trained.fit([MAPPING], [MAPPING], epochs=2)
    assert trained.objective(MAPPING).requires_grad
    assert trained.evaluate([MAPPING]).keys() == result.metrics.keys() == metrics.keys()
    assert all(keys == {"input_ids", "token_type_ids"} for keys in seen)
    with_shift = LiveTeacher(Tokens(4), transform=lambda inputs: {"input_ids": (inputs["input_ids"] + 1) % 10})
    options["losses"] = {"kd": KD(), "hint": Hint("embed", "embed")}
    engine(alone, with_shift, **options).fit([{"input_ids": IDS, "labels": MAPPING["labels"]}], epochs=2)
    assert torch.equal(flat(student), flat(alone))


@pytest.mark.parametrize("columns", [7, 5])
def test_other_columns_and_sizes_are_chosen_by_a_function(columns):
    inputs, labels = items(16).tensors
    wide, narrow = nn.Linear(INPUTS, CLASSES), nn.Linear(columns, CLASSES)
    cut = engine(wide, narrow, losses=[KD()], weights={}, teacher_inputs=lambda inputs: inputs[:, :columns])
    expected = engine(wide, Cut(narrow, columns), losses=[KD()], weights={}).objective((inputs, labels)).item()
    assert cut.objective((inputs, labels)).item() == pytest.approx(expected, rel=1e-6)


class Cut(nn.Module):
    def __init__(self, inner, columns):
        super().__init__()
        self.inner, self.columns = inner, columns

    def forward(self, inputs):
        return self.inner(inputs[:, : self.columns])


@pytest.mark.parametrize(
    ("student", "teacher", "item", "said"),
    [
        (Tokens(), Typed(), MAPPING, r"the student was .* Tokens.forward takes \(input_ids\), .*student_inputs=lambda"),
        (Tokens(), Typed(), {"input_ids": IDS}, r"the teacher was .* takes \(input_ids, token_type_ids\), and got the"),
        (Tokens(), Tokens(), ((IDS, IDS), None), r"the teacher was .* got 2 by position .*Batch\(\[images\], labels"),
        (mlp(), nn.Linear(5, CLASSES), torch.zeros(4, INPUTS), r"the teacher Linear .* \(4, 12\) float32: mat1"),
        (nn.Linear(INPUTS, 3), mlp().double(), torch.zeros(4, INPUTS), r"the teacher Sequential .*to\(torch.float64\)"),
        (nn.Conv2d(3, 4, 3), nn.Identity(), torch.zeros(2, 1, 8, 8), r"the student Conv2d .* \(2, 1, 8, 8\) float32"),
        (Tokens(), Tokens(), IDS + 20, r"the teacher Tokens .* \(8, 5\) int64: index out of range"),
        (Tokens(), None, {**MAPPING, "weights": IDS[:, 0]}, r"the student .*weights=item\['weights'\]"),
        (torch.compile(Tokens(), backend="eager"), Typed(), MAPPING, r"the student .*takes \(input_ids\)"),
    ],
)
def test_a_model_that_cannot_take_its_inputs_is_named_with_the_line_that_mends_it(student, teacher, item, said):
    losses = [CE()] if teacher is None else [KD()]
    trained = kdengine.Engine(student, teacher, losses=losses, optimizer=sgd, loggers=[])
    with pytest.raises(kdengine.ConfigurationError, match=said) as raised:
        trained.fit([item], epochs=1)
    assert raised.value.__cause__ is not None
    again = pickle.loads(pickle.dumps(raised.value))
    assert (type(again), str(again)) == (InputsError, str(raised.value))


def test_what_a_model_raises_of_itself_passes_with_a_note_whose_it_is():
    class Faulty(Tokens):
        def forward(self, input_ids):
            return len(1)

    with pytest.raises(TypeError, match="has no len") as raised:
        distil(Tokens(), Faulty(), {"input_ids": IDS})
    assert raised.value.__notes__ == ["raised by the forward of the teacher"]


def test_a_function_that_returns_nothing_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match=r"Engine\(student_inputs=fn\): fn returned None"):
        distil(Tokens(), Tokens(), {"input_ids": IDS}, student_inputs=lambda inputs: None)


def test_weights_that_a_model_would_swallow_are_named_once_and_those_it_takes_are_not():
    swallowing = engine(Anything(), None, losses=[CE()], weights={})
    item = {"input_ids": IDS, "labels": MAPPING["labels"], "sample_weight": torch.ones(8)}
    with pytest.warns(
        UserWarning, match=r"'sample_weight' .* weighs nothing .*weights=item\['sample_weight'\]"
    ) as told:
        swallowing.fit([item], epochs=3)
    assert len(told) == 1


@pytest.mark.filterwarnings("error")
def test_a_model_that_takes_weights_by_name_gets_them():
    class Weighing(Tokens):
        def forward(self, input_ids, weights, **kwargs):
            return super().forward(input_ids) * weights.unsqueeze(-1)

    item = {"input_ids": IDS, "labels": MAPPING["labels"], "weights": torch.ones(8)}
    assert engine(Weighing(), None, losses=[CE()], weights={}).fit([item], epochs=1).steps == 1


class Images(nn.Module):
    """Takes a list of images."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, CLASSES)

    def forward(self, images):
        return self.head(torch.stack([image.mean(dim=(1, 2)) for image in images]))


def test_logits_of_other_items_than_the_batch_are_refused_wherever_they_are_read():
    images = [torch.randn(3, 4, 4) for _ in range(6)]
    counted = engine(Images(), Images(), losses=[KD()], weights={}, batch=lambda item: kdengine.Batch([item]))
    for run in (counted.objective, lambda item: counted.fit([item], epochs=1)):
        with pytest.raises(kdengine.ConfigurationError, match=r"logits are a tensor \(6, 5\) .* has 3 items.*size="):
            run(images)
    measured = engine(
        Images(), losses=[CE()], weights={}, metrics={"n": lambda logits, labels: 1.0}, batch=lambda item: item
    )
    with pytest.raises(kdengine.ConfigurationError, match=r"logits are a tensor \(6, 5\) .* has 5 items"):
        measured.evaluate([kdengine.Batch([images], size=5)])
    sized = engine(Images(), Images(), losses=[KD()], weights={}, batch=lambda item: kdengine.Batch([item], size=6))
    assert sized.objective(images).requires_grad


def test_a_flattened_or_time_major_output_is_refused():
    for reshape in (lambda logits: logits.repeat(3, 1), lambda logits: logits.expand(3, *logits.shape)):
        with pytest.raises(kdengine.ConfigurationError, match="the batch has 4 items"):
            engine(losses=[KD()], weights={}, output=reshape).objective(torch.zeros(4, INPUTS))


@pytest.mark.parametrize("make", [kdengine.loader, DataLoader])
def test_a_last_batch_of_one_item_under_batch_normalization_is_refused_before_training(make):
    student = nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    trained = engine(student)
    with pytest.raises(
        kdengine.ConfigurationError, match=r"last batch .* has 1 item \(17 items in batches of 8\).*drop_"
    ):
        trained.fit(make(items(17), 8), epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert trained.fit(make(items(17), 8, drop_last=True), epochs=1).steps == 2
    assert trained.fit(make(items(17), 8), epochs=1, steps_per_epoch=2).steps == 2
    with pytest.raises(
        kdengine.ConfigurationError, match=r"the student Sequential .* a batch of 1 item: .*drop_last=True"
    ):
        trained.fit([(x, y) for x, y in DataLoader(items(17), 8)], epochs=1)


class Map(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs):
        return self.head(self.net(inputs.view(-1, 1, 3, 4)).mean(dim=(2, 3)))


def test_one_item_with_many_values_per_channel_is_fine_and_trying_it_leaves_no_trace():
    results = []
    for loader in (kdengine.loader(items(17), 8), list(kdengine.loader(items(17), 8))):
        torch.manual_seed(0)
        student = Map()
        engine(student, seed=0).fit(loader, epochs=1)
        results.append(torch.cat([value.flatten().double() for value in student.state_dict().values()]))
    assert torch.equal(*results)
