"""What every builtin data set gives the loader."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from torch import Tensor

from kdengine.api import ConfigurationError
from kdengine.api.errors import nearest

Split: TypeAlias = Literal["train", "test"]
Transform: TypeAlias = Callable[[Any], Any]


def check_split(split: str) -> None:
    """Refuse a split other than ``"train"`` and ``"test"``."""
    if split not in ("train", "test"):
        raise ConfigurationError(f"unknown split {split!r}: {nearest(split, ('train', 'test'))}")


class ClassificationData(ABC):
    """A map-style data set of (input, class id).

    Attributes:
        classes: names of the classes, in order of their ids.
        targets: class id of every sample, without loading inputs.
        transform: applied to each input, or None; may be set at any time.
        random: whether a sample draws randomness of its own, apart from ``transform``.
    """

    random = False

    def __init__(self, classes: Sequence[str], targets: Sequence[int]) -> None:
        self.classes = list(classes)
        self.targets: Sequence[int] = [int(target) for target in targets]
        self.transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[Any, int]:
        value = self.load(position)
        return (value if self.transform is None else self.transform(value)), self.targets[position]

    @abstractmethod
    def load(self, position: int) -> Any:
        """The input before the transform."""

    @abstractmethod
    def fingerprint(self) -> str:
        """What identifies the content: equal for equal inputs and labels in equal order."""


def digest(*parts: bytes | str) -> str:
    """A short hash of several parts; each part's length is hashed with it.

    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()[:32]


class InMemory(ClassificationData):
    """A data set whose inputs are one tensor, so that a loader may take a whole batch in one call.

    Args:
        inputs: every input, ``(N, ...)`` float32.
        labels: every class id, ``(N,)`` int64.
        classes: names of the classes.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        super().__init__(classes, labels.tolist())
        self.tensors = (inputs, labels)

    @property
    def indexed_tensors(self) -> tuple[Tensor, ...] | None:
        """The tensors whose rows are the items; None where a subclass makes its items in its own way."""
        own = type(self)
        as_here = own.load is InMemory.load and own.__getitem__ is ClassificationData.__getitem__
        return self.tensors if as_here else None

    def load(self, position: int) -> Tensor:
        """A view of one input."""
        return self.tensors[0][position]

    def fingerprint(self) -> str:
        """A digest of all inputs, labels and class names."""
        inputs, labels = (tensor.contiguous().numpy().tobytes() for tensor in self.tensors)
        return digest(str(tuple(self.tensors[0].shape)), inputs, labels, *self.classes)
