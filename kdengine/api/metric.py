"""The contract of a metric: what an evaluation reports."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from kdengine.api.batch import Batch
from kdengine.api.labels import IGNORE_INDEX as IGNORE_INDEX
from kdengine.api.loss import Classes


class Metric(ABC):
    """A number that an evaluation accumulates over its batches.

    State stays on the device until :meth:`compute`, so that an evaluation synchronizes once.

    Attributes:
        needs_teacher: whether :meth:`update` reads ``batch.teacher``.
        higher_is_better: direction of improvement, for "best" checkpoints. A metric that does not say it is taken by
            its name (``loss``, ``error``), and else for one of which more is better.
        needs_labels: whether :meth:`update` compares logits with ``batch.labels``.
        classes: what the last dimension of logits is to the metric, as for :class:`kdengine.Needs`; what is declared is
            checked on the first batch.
    """

    needs_teacher: ClassVar[bool] = False
    higher_is_better: ClassVar[bool | None] = True
    needs_labels: ClassVar[bool] = False
    classes: ClassVar[Classes | None] = None

    @abstractmethod
    def reset(self) -> None:
        """Forget everything; runs before each evaluation."""

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Take in one batch with outputs, under ``torch.no_grad``."""

    @abstractmethod
    def compute(self) -> float | None:
        """The metric over all batches since :meth:`reset`; None when it is undefined (no labelled item)."""


_LOWER = re.compile(
    r"(^|_|\b)(error|err|loss|perplexity|ppl|nll|ece|mse|mae|rmse|mape|wer|cer|ter|fid|brier|divergence|distance|kl)"
    r"s?(_|\b|$)",
    re.IGNORECASE,
)
_HIGHER = re.compile(
    r"(^|_|\b)(top-?\d+|acc|accuracy|f1|auc|auroc|precision|recall|map|iou|miou|dice|bleu|rouge|r2|agreement|psnr|ssim)"
    r"(_|\b|$)",
    re.IGNORECASE,
)


_NEGATED = re.compile(r"^-|(^|_|\b)neg(ative|ated)?(_|\b)", re.IGNORECASE)


def mode_in_name(name: str) -> Literal["max", "min"] | None:
    """Read from a metric's name which way it is better; None where it does not say.

    >>> mode_in_name("val_loss"), mode_in_name("top1"), mode_in_name("answer"), mode_in_name("neg_mean_squared_error")
    ('min', 'max', None, 'max')
    """
    lower, higher = _LOWER.search(name), _HIGHER.search(name)
    if lower and _NEGATED.search(name):
        return "max"
    if lower and higher and lower.end() < higher.end():  # of words that disagree, the last is the noun: top1_error
        return None
    if lower:
        return "min"
    return "max" if higher else None


def mode_of(metric: Any, part: str = "") -> Literal["max", "min"] | None:
    """Tell which way a metric says that it is better; None where it leaves that open.

    Args:
        metric: a metric or its class.
        part: which of its numbers, where it gives several.
    """
    inner = getattr(metric, "part", None)
    if part and callable(inner):
        metric = inner(part)
    kind = metric if isinstance(metric, type) else type(metric)
    if issubclass(kind, Metric) and not (_says(kind) or "higher_is_better" in vars(metric)):
        return None
    higher = getattr(metric, "higher_is_better", None)
    return None if not isinstance(higher, bool) else "max" if higher else "min"


def _says(kind: type[Metric]) -> bool:
    """Whether a class, or one that it is derived from, sets the direction itself."""
    return any("higher_is_better" in vars(base) for base in kind.__mro__[: kind.__mro__.index(Metric)])
