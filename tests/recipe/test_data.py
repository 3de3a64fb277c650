from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import kdengine
from kdengine.api import ConfigurationError
from kdengine.recipe.data import make_data, test_loader, training_loader

from .conftest import SMALL

test_loader.__test__ = False  # type: ignore[attr-defined]


class Sets:
    """A plugin with data sets that cannot be served."""

    kdengine_hook_version = 1

    @kdengine.hookimpl
    def kdengine_datasets(self):
        def empty(split: str):
            return FakeData(0 if split == "test" else 4)

        def bare(split: str):
            return SimpleNamespace(classes=["a"])

        def text(split: str):
            return FakeData(4, value="words")

        return {"empty": empty, "bare": bare, "text": text}


class FakeData:
    def __init__(self, items, value=None):
        self.targets = [0] * items
        self.classes = ["a", "b"]
        self.value = torch.zeros(1, 8, 8) if value is None else value
        self.transform = None

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, position):
        return self.value, self.targets[position]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("empty", "the test split of data set 'empty' is empty"),
        ("bare", "without targets"),
        ("text", "add 'to_tensor' to data.transforms"),
    ],
)
def test_a_data_set_that_cannot_be_served_is_refused(plan_of, name, told):
    with pytest.raises(ConfigurationError, match=told):
        make_data(plan_of(SMALL, f"data.use={name}", plugins=[Sets()]))


def test_models_learn_the_shape_and_the_classes_of_the_data(plan_of):
    data = make_data(plan_of())
    assert data.facts == {"classes": 10, "input_shape": (1, 8, 8), "input_dtype": torch.float32}
    assert data.describe("digits", 0.2, 0) == {
        "name": "digits",
        "train_items": 1257,
        "labelled_items": 250,
        "labelled": 0.2,
        "test_items": 540,
        "classes": [str(digit) for digit in range(10)],
    }


def test_transforms_run_in_order_and_shape_what_models_see(plan_of):
    normalize = "{ use = 'normalize', mean = [0.5], std = [0.5] }"
    plan = plan_of(SMALL, f"data.transforms=[{normalize}, {{ use = 'resize', size = 12 }}]")
    data = make_data(plan)
    assert data.input_shape == (1, 12, 12)
    assert float(data.train[0][0].min()) < -0.9


@pytest.mark.parametrize(
    "transform", ["{ use = 'resize', size = 8 }", "{ use = 'random_crop', size = 8, padding = 1 }"]
)
def test_samples_are_seeded_only_where_a_transform_draws(plan_of, transform):
    plan = plan_of(SMALL, f"data.transforms=[{transform}]")
    loader = training_loader(plan, make_data(plan).train, batch_size=8, seed=0)
    first = [next(iter(loader.batches(epoch))).data[0] for epoch in (0, 0)]
    assert torch.equal(*first)


def test_the_test_set_keeps_its_order(plan_of):
    plan = plan_of()
    data = make_data(plan)
    index = torch.cat([index for _, _, index in test_loader(plan, data)])
    assert index.tolist() == list(range(540))
