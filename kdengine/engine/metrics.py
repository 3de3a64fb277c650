"""The metrics of an evaluation: names, classes, torchmetrics-like objects and plain functions behind one contract."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Metric
from kdengine.api.errors import warn
from kdengine.api.metric import IGNORE_INDEX
from kdengine.host import Host

MetricLike: TypeAlias = str | Metric | type[Metric] | Callable[..., Any]

AS_OBJECT = (
    "an object with update(logits, labels), compute() and reset(), such as those of torchmetrics, sees every batch "
    "before it computes"
)


def as_numbers(name: str, value: Any) -> dict[str, float | None]:
    """Read what a metric gives as numbers by name; those of a mapping are named after a dot.

    >>> as_numbers("f1", {"macro": 0.5, "micro": torch.tensor(0.25)})
    {'f1.macro': 0.5, 'f1.micro': 0.25}

    Raises:
        ConfigurationError: it is neither a number nor a mapping of them.
    """
    if isinstance(value, Mapping):
        found: dict[str, float | None] = {}
        for key, part in value.items():
            found |= as_numbers(f"{name}.{key}" if name else str(key), part)
        return found
    if value is None:
        return {name: None}
    if isinstance(value, Tensor) and value.numel() == 1:
        return {name: float(value)}
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, str | bytes | Tensor):
            return {name: float(value)}
    raise ConfigurationError(
        f"the metric {name!r} gives {describe(value)}; expected one number, or a mapping of names to numbers. Where it "
        "has one for each class, take their mean (of torchmetrics: average='macro'), or name them in a mapping"
    )


def describe(value: Any) -> str:
    """Say what a value is, with the shape of a tensor.

    >>> describe(torch.zeros(3)), describe([1])
    ('a tensor of shape (3,)', 'a list')
    """
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def said_direction(given: Any) -> bool | None:
    """What an object or a function says of which way it is better, in the word of torchmetrics."""
    said = getattr(given, "higher_is_better", None)
    return said if isinstance(said, bool) else None


def labelled(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Logits and labels of the items that count: those with a label, and with a True in the batch's mask."""
    logits, labels = batch.student.logits, batch.labels
    counts = batch.mask if batch.mask is not None and batch.mask.shape == logits.shape[:1] else None
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.shape[:1] == logits.shape[:1]:
        known = (labels != IGNORE_INDEX).reshape(len(labels), -1).any(dim=1)
        counts = known if counts is None else known & counts.to(known.device)
    if counts is None or bool(counts.all()):
        return logits, labels
    counts = counts.to(logits.device)
    return logits[counts], labels[counts] if isinstance(labels, Tensor) else labels


class FunctionMetric(Metric):
    """A plain ``fn(logits, labels)`` as a metric: a value for each item, or a mean over them, averaged over all items.

    Items without a label are left out before it is called, and of labels for each position those positions. What is
    no mean of the items (F1, a quantile) cannot be put together from batches: it is told once, when the value of a
    batch is not that of its halves.

    Args:
        fn: the function.
        name: of the metric.
    """

    def __init__(self, fn: Callable[..., Any], name: str = "metric") -> None:
        self.fn = fn
        self.name = name
        self._warned = self._is_mean = self._gives_several = False
        self.reset()

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """What an attribute of the function says."""
        return said_direction(self.fn)

    def reset(self) -> None:
        """Forget everything."""
        self._sum: Tensor | float = 0.0
        self._items = 0
        self._ones: list[tuple[Tensor, int]] = []

    def update(self, batch: Batch) -> None:
        """Add the batch's items."""
        logits, labels = labelled(batch)
        if len(logits) == 0:
            return
        value = self._call(logits, labels)
        if value.numel() == 1:
            self._compare_halves(value, logits, labels)
            self._ones.append((value, len(logits)))
        elif labels is not None and labels.ndim > 1 and value.shape == labels.shape and not labels.is_floating_point():
            self._add(value[labels.to(value.device) != IGNORE_INDEX])
        else:
            self._check_length(value, logits)
            self._add(value)

    def _add(self, values: Tensor) -> None:
        self._gives_several |= len(values) > 1
        self._add_mean(values, len(values))

    def _add_mean(self, value: Tensor, items: int) -> None:
        if items:
            self._sum = self._sum + value.mean() * items
            self._items += items

    def _call(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        given = self.fn(logits, labels)
        items = len(logits)
        if not isinstance(given, list | tuple) or len(given) == items:
            with suppress(TypeError, ValueError, RuntimeError):
                return torch.as_tensor(given, dtype=torch.float32)
        raise ConfigurationError(
            f"the metric {self.name!r} returned {describe(given)} for a batch of {items} items; expected a tensor with "
            f"one value for each, or their mean; {AS_OBJECT}"
        )

    def _check_length(self, value: Tensor, logits: Tensor) -> None:
        if not self._warned and value.ndim == 1 and len(value) != len(logits) and len(value) == logits.shape[-1]:
            self._warned = True
            warn(
                f"the metric {self.name!r} returns {len(value)} values for a batch of {len(logits)} items, one for "
                f"each class it seems; they are averaged over classes and batches. {AS_OBJECT.capitalize()}"
            )

    def _compare_halves(self, value: Tensor, logits: Tensor, labels: Tensor | None) -> None:
        """Warn, once, when the value of a batch is not the mean of its halves, weighted by items.

        Halves of one value say nothing; the next batch is looked at.
        """
        items = len(logits)
        if self._warned or self._is_mean or items < 2:
            return
        cut = items // 2
        try:
            first, second = (
                float(self._call(logits[part], labels if labels is None else labels[part]))
                for part in (slice(None, cut), slice(cut, None))
            )
        except Exception:  # a function may need what halves do not have, such as every class
            self._is_mean = True
            return
        mean, whole = (first * cut + second * (items - cut)) / items, float(value)
        if abs(mean - whole) > 1e-4 * max(abs(first), abs(second), abs(whole)):
            self._warned = True
            warn(
                f"the metric {self.name!r} returns a number for the whole batch that is not the mean over its items "
                f"({whole:.6g}; the halves of the batch give {mean:.6g}), so the mean over batches is not its value "
                f"over the data. Return one value for each item, or use an object: {AS_OBJECT}"
            )
        self._is_mean = first != second

    def compute(self) -> float | None:
        """Mean over items.

        One number is the mean over its batch, unless it is one of those that a function gives for some of the items.
        """
        for value, items in self._ones:
            self._add_mean(value, 1 if self._gives_several and value.ndim else items)
        self._ones = []
        return float(self._sum) / self._items if self._items else None


class ForeignMetric(Metric):
    """An object with ``update(logits, labels)``, ``compute()`` and ``reset()``, such as those of torchmetrics.

    Items without a label are left out.
    """

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """What the object says of itself, as those of torchmetrics do."""
        return said_direction(self.metric)

    def part(self, name: str) -> Any:
        """One metric of a collection; the object itself where it has none of that name."""
        try:
            return ForeignMetric(self.metric[name])
        except (TypeError, KeyError, IndexError, AttributeError):
            return self

    def reset(self) -> None:
        """Forget everything."""
        self.metric.reset()

    def update(self, batch: Batch) -> None:
        """Add the batch's items."""
        logits, labels = labelled(batch)
        if len(logits) == 0:
            return
        if hasattr(self.metric, "to"):
            self.metric.to(logits.device)
        self.metric.update(logits, labels)

    def compute(self) -> Any:
        """The metric's own value."""
        return self.metric.compute()


def make_metrics(given: Mapping[str, MetricLike] | Sequence[MetricLike] | str | None, host: Host) -> dict[str, Metric]:
    """Instantiate the metrics of one fit.

    Args:
        given: by name; or a list, in which a metric has its own name.
        host: finds metrics by name.

    Raises:
        ConfigurationError: what was given is no metric, or gives more than a number.
    """
    made = {name: _make(name, item, host) for name, item in _by_name(given).items()}
    for name, metric in made.items():
        if isinstance(metric, ForeignMetric):
            _check_untouched(name, metric)
    return made


def _by_name(given: Any) -> dict[str, MetricLike]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {str(name): item for name, item in given.items()}
    if not isinstance(given, list | tuple):
        given = [given]
    named: dict[str, MetricLike] = {}
    for item in given:
        name = _own_name(item)
        if name in named:
            raise ConfigurationError(f"two metrics are called {name!r}; name them: metrics={{{name!r}: ...}}")
        named[name] = item
    return named


def _own_name(item: Any) -> str:
    if isinstance(item, str):
        return item.rsplit(":", 1)[-1]
    name = str(getattr(item, "__name__", type(item).__name__))
    if name == "<lambda>":
        raise ConfigurationError(
            'a lambda has no name to report it under: metrics={"mine": lambda logits, labels: ...}'
        )
    return name if callable(item) and not isinstance(item, type) and hasattr(item, "__name__") else name.lower()


def _check_untouched(name: str, metric: ForeignMetric) -> None:
    """Ask a copy that has seen nothing: what is several tensors even then will never be one number.

    Raises:
        ConfigurationError: it is.
    """
    value = _value_of_nothing(metric)
    several = isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value)
    if several or (isinstance(value, Tensor) and value.numel() > 1):
        as_numbers(name, value)


def _value_of_nothing(metric: ForeignMetric) -> Any:
    """What a copy of a metric computes without data; None where it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchmetrics: compute before update
            fresh = copy.deepcopy(metric)
            fresh.reset()
            return fresh.compute()
    except Exception:  # most need data
        return None


def _make(name: str, item: MetricLike, host: Host) -> Metric:
    made: Any = host.component("metrics", item).load() if isinstance(item, str) else item
    if isinstance(made, type):
        made = _instance(name, made)
    if isinstance(made, Metric):
        return made
    if all(hasattr(made, method) for method in ("update", "compute", "reset")):
        return ForeignMetric(made)
    if callable(made):
        return FunctionMetric(made, name)
    raise ConfigurationError(
        f"metrics[{name!r}] is a {type(made).__name__}; expected a metric's name, a kdengine.Metric, "
        "an object with update, compute and reset, or fn(logits, labels)"
    )


def _instance(name: str, kind: type[Any]) -> Any:
    try:
        return kind()
    except TypeError as error:
        raise ConfigurationError(
            f"metrics[{name!r}] is the class {kind.__name__}, which cannot be made without arguments ({error}); pass "
            f"an instance: {kind.__name__}(...)"
        ) from error
