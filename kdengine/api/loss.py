"""The contract of a loss: values per item, never a mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from kdengine.api.batch import Batch
from kdengine.api.errors import ConfigurationError, warn
from kdengine.api.given import Given
from kdengine.api.labels import IGNORE_INDEX, labelled, labelled_items
from kdengine.api.schedule import Progress, Schedule

Weight: TypeAlias = Tensor | float
"""Factor of one term: weight x mask / D x loss scale.

A number (or 0-dim tensor) when every item of the micro-batch counts alike, else a tensor with the mask's shape.
"""


Classes: TypeAlias = Literal["exclusive", "independent"]
"""What the last dimension of logits holds: classes that exclude one another, as a softmax has them, or labels each of
which is there or not, as a sigmoid has them."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a loss reads; nothing else is computed.

    Attributes:
        teacher: whether it reads ``batch.teacher`` at all.
        logits: whether it reads logits, so that class counts must match.
        labels: whether it reads ``batch.labels``.
        index: whether it reads ``batch.index``.
        student_features: paths of modules of the student whose outputs it reads; ``layer?`` names several, and
            ``fc:input`` is what goes in (:mod:`kdengine.api.features`).
        teacher_features: the same of the teacher.
        teacher_gradients: whether a gradient must flow into the teacher (an evolving source only).
        teacher_training: whether the teacher must be in training mode (an evolving source only).
        classes: what the last dimension of the logits is to the loss: ``"exclusive"`` classes, over which it takes a
            softmax, ``"independent"`` labels, or None for any tensor. What is declared is checked on real outputs
            before the first step: a single exclusive class, classes in dimension 1, labels of another form or out of
            range.
    """

    teacher: bool = True
    logits: bool = True
    labels: bool = False
    index: bool = False
    student_features: tuple[str, ...] = ()
    teacher_features: tuple[str, ...] = ()
    teacher_gradients: bool = False
    teacher_training: bool = False
    classes: Classes | None = None


class Loss(Given, nn.Module):
    """Base of every loss.

    A loss of ``scope = "item"`` implements :meth:`per_item`; the engine alone reduces: each term becomes
    ``sum(weight * value) / D`` where D is the number of the term's valid items over all micro-batches of the
    optimizer step (the sum of their ``batch.weights``, which weigh the values too, where a batch has them), so any
    split of the batch gives the same gradient. A relational loss declares
    ``scope = "batch"`` and implements :meth:`value`; micro-batches are then combined by their item counts, and a
    split does change the result.

    Attributes:
        scope: ``"item"`` or ``"batch"``.
        at_equality: what the loss promises of a student that gives what its teacher gives: that the value is
            ``"zero"``, or that it has its ``"minimum"`` there; None promises nothing. The kit holds it to it.
        detaches: whether the gradient takes a part of the value as a constant on purpose, such as a weight that is
            computed from the outputs. The kit then holds what the loss detaches at its value.
        terms: names of the terms that :meth:`per_item` or :meth:`value` returns when it returns a dict.
        needs: what the loss reads.
        projector: name or factory of the projector between features, for losses that use one.

    Example:
        >>> class SquaredError(Loss):
        ...     def per_item(self, batch):
        ...         return (batch.student.logits - batch.teacher.logits).square().mean(dim=-1)
        >>> SquaredError().terms
        ('loss',)
    """

    scope: ClassVar[Literal["item", "batch"]] = "item"
    at_equality: ClassVar[Literal["zero", "minimum"] | None] = None
    detaches: ClassVar[bool] = False
    terms: tuple[str, ...] = ("loss",)
    needs: Needs = Needs()
    projector: str | Callable[..., nn.Module] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.schedules: dict[str, Schedule] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep a schedule aside and let the attribute be its current value; any other value ends a schedule."""
        if isinstance(value, Schedule):
            if "schedules" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__}.__init__ must call super().__init__() first")
            self.schedules[name] = value
            value = float(value.value(Progress(step=0, steps=1)))
        else:
            self.__dict__.get("schedules", {}).pop(name, None)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute, and the schedule behind it."""
        self.__dict__.get("schedules", {}).pop(name, None)
        super().__delattr__(name)

    def setup(self, example: Batch) -> None:
        """Create what depends on real shapes (projectors, critics); runs once, on a batch with outputs.

        Where the loss has an attribute ``projector`` that is a name, the engine has already put the factory of that
        name in its place: ``self.projector(student_shape, teacher_shape) -> nn.Module``.
        """

    def valid(self, batch: Batch) -> Tensor | Mapping[str, Tensor | None] | None:
        """Say which items count, from inputs and labels only.

        By default all of them count, save those without a label where the loss needs labels: class ids equal to the
        loss's ``ignore_index`` (-100 where it has no such attribute). Of several ids per item one suffices, unless the
        loss declares ``Needs(classes="exclusive")``: each position then counts for itself, and a row of probabilities
        that are all zero does not.

        Returns:
            None for all, a bool tensor ``(B,)`` or ``(B, ...)`` for every term, or one such value per term.
        """
        labels = batch.labels
        if not self.needs.labels or not isinstance(labels, Tensor):
            return None
        given = getattr(self, "ignore_index", IGNORE_INDEX)
        ignore_index = given if isinstance(given, int) else IGNORE_INDEX
        if self.needs.classes != "exclusive":
            return labelled_items(labels, ignore_index)
        mask = labelled(labels, ignore_index)
        if mask is None or mask.ndim == 1 or self.scope == "item":
            return mask
        return mask.flatten(1).any(dim=-1)  # a loss of scope "batch" compares whole items

    def inspect(self, batch: Batch) -> None:
        """Look at real data once, before the first step, and raise what the loss cannot work with.

        The batch has outputs, and its values may be read, which in :meth:`per_item` would wait for the device at every
        step. The default looks at nothing.

        Raises:
            ConfigurationError: as the loss may say; the engine adds the loss's label.
        """

    def per_item(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """Values of shape ``(B, ...)``; dimensions beyond those of the mask are averaged within the item."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement per_item(batch) (or value(batch) for scope 'batch')"
        )

    def value(self, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The scalar of a loss of scope ``"batch"``, or one of each of its terms.

        The batch holds the items that count, and at least one.
        """
        raise NotImplementedError(f"{type(self).__name__} has scope 'batch' and must implement value(batch)")

    def end_step(self) -> None:
        """Write down what the loss remembers of the items that it saw; a loss without a memory has nothing to do.

        Called after every optimizer step, in every process and before a checkpoint. A loss that reads its memory in
        :meth:`per_item`, and changes it here alone, keeps the promise of the scope ``"item"``: all micro-batches and
        processes of a step see the same memory. What it stores it passes through :func:`kdengine.gather`, which keeps
        its buffers the same in all processes; they are not exchanged at every forward pass. Outside of training, where
        ``self.training`` is False or no gradient is recorded, it does not note what it sees.
        """

    def weighted_sum(self, batch: Batch, weights: Mapping[str, Weight]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reduce the loss to what is differentiated.

        A fused loss overrides this so that its gradient is written at its final magnitude.

        Args:
            batch: the micro-batch with outputs.
            weights: per term, weight x mask / D x loss scale.

        Returns:
            the scalar to differentiate, and each term's share of it, detached.
        """
        if self.scope == "batch":
            values = self._named(self.value(batch))
            sums = {term: values[term] * weights[term] for term in self.terms}
        else:
            values = self._named(self.per_item(silence(batch, tuple(weights.values()))))
            sums = {term: weigh(values[term], weights[term]) for term in self.terms}
        total = torch.stack(tuple(sums.values())).sum() if len(sums) > 1 else next(iter(sums.values()))
        return total, {term: value.detach() for term, value in sums.items()}

    def _named(self, values: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {self.terms[0]: values} if isinstance(values, Tensor) else values


def weigh(value: Tensor, weight: Weight) -> Tensor:
    """``sum(weight * value)``; a weight of zero silences its item even where the value is NaN.

    >>> weigh(torch.tensor([1.0, float("nan")]), torch.tensor([0.5, 0.0]))
    tensor(0.5000)
    """
    dims = weight.ndim if isinstance(weight, Tensor) and weight.ndim else 1
    if value.ndim > dims:
        value = value.flatten(dims).mean(dim=-1)
    if isinstance(weight, Tensor) and weight.ndim:
        return (torch.where(weight != 0, value, 0.0) * weight).sum()
    return value.sum() * weight


def silence(batch: Batch, weights: Sequence[Weight]) -> Batch:
    """The batch with zeros in the outputs of items that have no weight in any term.

    A weight of zero does not stop a NaN in the backward pass, where zero times NaN is NaN.
    """
    live: Tensor | None = None
    for weight in weights:
        if not isinstance(weight, Tensor) or not weight.ndim:
            return batch
        own = (weight != 0).flatten(1).any(dim=-1) if weight.ndim > 1 else weight != 0
        live = own if live is None else live | own
    if live is None:
        return batch
    return batch.replace(
        student=batch.student.select(live), teacher=batch.teacher.select(live) if batch.has_teacher else None
    )


class CallableLoss(Loss):
    """A plain criterion as a loss; see :func:`from_callable`."""

    def __init__(self, fn: Callable[..., Tensor], target: Literal["teacher", "labels"]) -> None:
        super().__init__()
        self.fn = fn
        self.target = target
        self.needs = Needs(teacher=target == "teacher", labels=target == "labels")
        if isinstance(fn, nn.CrossEntropyLoss | nn.NLLLoss) and fn.weight is not None:
            warn(
                f"from_callable: {type(fn).__name__}(weight=...) gives weighted values, which are divided by the "
                "number of items here, and by the sum of their weights in PyTorch's own mean. For that one weigh the "
                "items: Engine(batch=lambda item: kdengine.Batch(item[0], item[1], weights=weight[item[1]]))"
            )
        bound = fn.keywords.get("ignore_index") if isinstance(fn, partial) else None
        if isinstance(ignored := getattr(fn, "ignore_index", bound), int):
            self.ignore_index = ignored

    def valid(self, batch: Batch) -> Tensor | Mapping[str, Tensor | None] | None:
        """What is labelled: position by position for a criterion that has an ``ignore_index``, else item by item."""
        labels = batch.labels
        if self.needs.labels and isinstance(labels, Tensor) and hasattr(self, "ignore_index"):
            return labelled(labels, self.ignore_index)
        return super().valid(batch)

    def per_item(self, batch: Batch) -> Tensor:
        """Call the criterion on student logits and the target; it must not reduce."""
        student = wide(batch.student.logits)
        target = wide(batch.teacher.logits) if self.target == "teacher" else as_ids(batch.labels)
        values = self.fn(student, target)
        if values.ndim == 0:
            raise ConfigurationError(
                "the criterion given to from_callable returned one number for the whole batch; the engine reduces, "
                "so pass one that returns a value per item, for instance nn.MSELoss(reduction='none')"
            )
        if isinstance(target, Tensor) and target.shape != student.shape:
            refuse_broadcast(values.shape, student.shape, target.shape, "the labels" if self.needs.labels else TEACHER)
        return values


TEACHER = "the teacher's logits"


def as_ids(labels: Any) -> Any:
    """Class ids as int64, the one type that PyTorch's criteria index by; anything else as it is."""
    narrow = isinstance(labels, Tensor) and labels.dtype in (torch.int8, torch.int16, torch.int32)
    return labels.long() if narrow else labels


def refuse_broadcast(values: Sequence[int], student: Sequence[int], target: Sequence[int], what: str) -> None:
    """Refuse values that come from every output against every target: ``(N, 1)`` against ``(N,)`` is ``(N, N)``.

    Args:
        values: shape of what a criterion gave.
        student: shape of the student's logits.
        target: shape of what they were compared with.
        what: the target in words.

    Raises:
        ConfigurationError: the values have the shape to which both sides broadcast, and neither side has it.
    """
    try:
        together = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            tuple(student), tuple(target)
        )
    except RuntimeError:  # they do not broadcast, so the criterion knew what to do
        return
    if tuple(values) == tuple(together) and tuple(values) not in (tuple(student), tuple(target)):
        raise ConfigurationError(
            f"the student's logits {tuple(student)} and {what} {tuple(target)} were broadcast to {tuple(values)}: "
            "every output was compared with the targets of other items. Give both one shape: "
            "Engine(output=lambda output: output.squeeze(-1)), or labels.unsqueeze(-1) where the batch is made"
        )


def wide(logits: Tensor) -> Tensor:
    """In float32 or wider: a square of half-precision logits overflows."""
    return logits if logits.itemsize >= 4 else logits.float()


def from_callable(fn: Callable[..., Tensor], target: Literal["teacher", "labels"] = "teacher") -> Loss:
    """Wrap a plain criterion ``fn(student_logits, target) -> (B, ...)`` as a loss.

    Args:
        fn: a criterion that does not reduce; an ``nn.Module`` keeps its parameters.
        target: ``"teacher"`` for the teacher's logits, ``"labels"`` for the batch's labels. What a criterion with an
            ``ignore_index`` ignores is left out, and so are class ids of -100 with any other.

    Example:
        >>> loss = from_callable(nn.MSELoss(reduction="none"))
        >>> loss.needs.teacher
        True
    """
    return CallableLoss(fn, target)


def name_losses(losses: Mapping[str, Loss] | Sequence[Loss] | Loss) -> dict[str, Loss]:
    """Give every loss a label: its own, or its class's name in lower case."""
    if isinstance(losses, Mapping):
        return dict(losses)
    items = [losses] if isinstance(losses, Loss) else list(losses)
    named = {type(item).__name__.lower(): item for item in items}
    if len(named) != len(items):
        raise ValueError("two losses of one class need labels: pass a dict such as {'kd_a': KD(), 'kd_b': KD()}")
    return named
