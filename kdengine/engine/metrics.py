"""The metrics of an evaluation: names, classes, torchmetrics-like objects and plain functions behind one contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError, Metric
from kdengine.host import Host

MetricLike: TypeAlias = str | Metric | type[Metric] | Callable[..., Any]


class FunctionMetric(Metric):
    """A plain ``fn(logits, labels)`` as a metric: a value per item, or a mean over the batch, averaged over items."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sum: Tensor | float = 0.0
        self._items = 0

    def update(self, batch: Batch) -> None:
        """Add the batch's items."""
        value = torch.as_tensor(self.fn(batch.student.logits, batch.labels), dtype=torch.float32)
        self._sum = self._sum + value.mean() * batch.size
        self._items += batch.size

    def compute(self) -> float | None:
        """Mean over items."""
        return float(self._sum) / self._items if self._items else None


class ForeignMetric(Metric):
    """An object with ``update(logits, labels)``, ``compute()`` and ``reset()``, such as those of torchmetrics."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def reset(self) -> None:
        """Forget everything."""
        self.metric.reset()

    def update(self, batch: Batch) -> None:
        """Add the batch's items."""
        if hasattr(self.metric, "to"):
            self.metric.to(batch.student.logits.device)
        self.metric.update(batch.student.logits, batch.labels)

    def compute(self) -> float | None:
        """The metric's own value."""
        return float(self.metric.compute())


def make_metrics(given: Mapping[str, MetricLike] | None, host: Host) -> dict[str, Metric]:
    """Instantiate the metrics of one fit."""
    return {name: _make(name, item, host) for name, item in (given or {}).items()}


def _make(name: str, item: MetricLike, host: Host) -> Metric:
    made: Any = host.component("metrics", item).load() if isinstance(item, str) else item
    if isinstance(made, type):
        made = made()
    if isinstance(made, Metric):
        return made
    if all(hasattr(made, method) for method in ("update", "compute", "reset")):
        return ForeignMetric(made)
    if callable(made):
        return FunctionMetric(made)
    raise ConfigurationError(
        f"metrics[{name!r}] is a {type(made).__name__}; expected a metric's name, a kdengine.Metric, "
        "an object with update, compute and reset, or fn(logits, labels)"
    )
