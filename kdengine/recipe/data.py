"""The data of a run: training and test sets, what models learn of them, and their loaders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdengine.api import ConfigurationError
from kdengine.api.batch import describe
from kdengine.engine.loader import Loader
from kdengine.recipe.binder import DETERMINISTIC, Bound
from kdengine.recipe.fingerprint import fingerprint
from kdengine.recipe.labelled import UNLABELLED, Labelled
from kdengine.recipe.plan import Plan


class Composed:
    """Transforms in order.

    Attributes:
        random: whether any of them draws; the loader seeds each sample only then.
    """

    def __init__(self, transforms: Sequence[Bound]) -> None:
        self.transforms = [make() for make in transforms]
        self.random = any(make.component.name not in DETERMINISTIC for make in transforms)

    def __call__(self, value: Any) -> Any:
        """Apply them."""
        for transform in self.transforms:
            value = transform(value)
        return value


@dataclass(frozen=True)
class Data:
    """Both splits of a run's data set.

    Attributes:
        train: the training set, fully labelled.
        test: the test set.
        classes: names of the classes.
        input_shape: shape of one input.
        input_dtype: its element type.
    """

    train: Any
    test: Any
    classes: list[str]
    input_shape: tuple[int, ...]
    input_dtype: torch.dtype

    @property
    def facts(self) -> dict[str, Any]:
        """What models and batch transforms may ask of the data."""
        return {"classes": len(self.classes), "input_shape": self.input_shape, "input_dtype": self.input_dtype}

    @property
    def content(self) -> str:
        """What identifies the content of the training set."""
        return fingerprint(self.train)

    @property
    def test_content(self) -> str:
        """What identifies the content of the test set."""
        return fingerprint(self.test)

    def training_set(self, share: float, seed: int) -> Any:
        """The training set with a share of its labels."""
        return self.train if share == 1.0 else Labelled(self.train, share, seed)

    def describe(self, name: str, share: float, seed: int) -> dict[str, Any]:
        """What a summary says of the data."""
        labels = torch.as_tensor(list(self.training_set(share, seed).targets))
        return {
            "name": name,
            "train_items": len(self.train),
            "labelled_items": int((labels != UNLABELLED).sum()),
            "labelled": share,
            "test_items": len(self.test),
            "classes": self.classes,
        }


def make_data(plan: Plan) -> Data:
    """Load both splits and check that they can be served.

    Raises:
        ConfigurationError: a split is empty or lacks something, or an input is no tensor after its transforms.
    """
    train, test = plan.data("train"), plan.data("test")
    for split, dataset, transforms in (("train", train, plan.transforms), ("test", test, plan.eval_transforms)):
        if lacking := [name for name in ("classes", "targets") if not hasattr(dataset, name)]:
            raise ConfigurationError(
                f"data set {plan.recipe.data.use!r} gave a {type(dataset).__name__} without {' and '.join(lacking)}: "
                "expected classes (their names) and targets (every item's label)"
            )
        if len(dataset) == 0:
            raise ConfigurationError(f"the {split} split of data set {plan.recipe.data.use!r} is empty")
        if transforms:
            dataset.transform = Composed(transforms)
    sample = test[0][0]
    if not isinstance(sample, torch.Tensor):
        raise ConfigurationError(
            f"an input of data set {plan.recipe.data.use!r} is {describe(sample)} after its transforms, expected a "
            "tensor; add 'to_tensor' to data.transforms"
        )
    return Data(train, test, [str(name) for name in train.classes], tuple(sample.shape), sample.dtype)


def training_loader(plan: Plan, dataset: Any, *, batch_size: int, seed: int) -> Loader:
    """The loader of a training set."""
    return Loader(dataset, batch_size, seed=seed, workers=plan.recipe.data.workers)


def test_loader(plan: Plan, data: Data) -> Loader:
    """The loader of the test set, in its own order."""
    return Loader(data.test, plan.recipe.evaluate.batch_size, shuffle=False)
