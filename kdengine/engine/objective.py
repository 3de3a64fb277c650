"""The objective: which items count, by what each term is divided, and the weighted sum that is differentiated.

This is the one place that reduces losses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from kdengine.api import ConfigurationError, Loss, Progress, Schedule, Weight
from kdengine.api.batch import Batch, describe
from kdengine.api.errors import LossError, nearest
from kdengine.engine import weights as item_weights
from kdengine.engine.attribution import attributed
from kdengine.engine.heads import Heads
from kdengine.engine.label_checks import check_labels, check_range, ignored
from kdengine.engine.mutual import PEER, exchanged, peer_losses, peer_weights, settled
from kdengine.engine.naming import module_names
from kdengine.engine.notices import Notices
from kdengine.engine.padding import warn_of_padded_values
from kdengine.engine.value_checks import check_valid, check_values, recorded_values

Masks: TypeAlias = Sequence[Tensor | None]
"""One mask per term; None when every item counts."""


class Objective:
    """All losses of a fit, with their weights and schedules.

    Args:
        losses: loss modules by label.
        weights: factor of each label, a number or a schedule; 1 where absent. What is set in it later counts from the
            next step on.
        mutual: whether the teacher learns too, by copies of the losses.
        heads: what each loss reads as logits and labels; by default all read the same.
        notices: of the engine, for what may be meant.

    Attributes:
        names: full names of the terms, ``label`` or ``label.term``, in a fixed order.
        term_weights: the current weight of each term, in the same order.
        module_names: the name of each label's loss in ``modules``, and so in a checkpoint.
        peers: labels of the teacher's losses, where it learns.
        remembering: the losses with a memory, which is written at the end of a step.
        unseen: labels of the losses that have not been computed yet; what they give the first time is checked.
        on_device: losses of class ids whose logits are on an accelerator, which a label out of range would bring down:
            the batch's labels are then checked on the host at every step.
    """

    def __init__(
        self,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float | Schedule],
        *,
        mutual: bool = False,
        heads: Heads | None = None,
        notices: Notices | None = None,
    ) -> None:
        for label, loss in losses.items():
            if not isinstance(loss, Loss):
                raise ConfigurationError(
                    f"losses[{label!r}] is a {type(loss).__name__}, expected a kdengine.Loss; "
                    "wrap a plain criterion with kdengine.from_callable"
                )
        for label in weights:
            if label not in losses:
                raise ConfigurationError(f"weights names {label!r}, which is no loss; {nearest(label, losses)}")
        given, peers = weights, peer_losses(losses) if mutual else {}
        losses, weights = {**losses, **peers}, {**weights, **peer_weights(weights, peers)}
        self.peers = frozenset(peers)
        self.losses = dict(losses)
        self.module_names = module_names(losses)
        self.modules = nn.ModuleDict({self.module_names[label]: loss for label, loss in losses.items()})
        self.unseen = set(losses)
        self._notices = notices or Notices()
        self.on_device: set[str] = set()
        self.heads = Heads(None, None, losses) if heads is None else heads
        self.terms = [(label, term) for label, loss in losses.items() for term in loss.terms]
        self.names = [label if term == "loss" else f"{label}.{term}" for label, term in self.terms]
        self.weights: dict[str, float] = {}
        self.schedules: dict[str, Schedule] = {}
        self._items = list(losses.items())
        self.remembering = {label: loss for label, loss in losses.items() if type(loss).end_step is not Loss.end_step}
        self.place(torch.device("cpu"), torch.float32)
        for label in losses:
            self._set_weight(label, weights.get(label, 1.0))
        self._given, self._followed = given, dict(given)
        self.term_weights = self._term_weights()

    def _set_weight(self, label: str, weight: float | Schedule) -> None:
        self.schedules.pop(f"weights.{label}", None)
        if isinstance(weight, Schedule):
            self.schedules[f"weights.{label}"] = weight
            weight = weight.value(Progress(step=0, steps=1))
        self.weights[label] = float(weight)

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the losses' own parameters, and give masks the precision of the student's parameters."""
        self.modules.to(device)
        self.device = device
        self.dtype = torch.promote_types(dtype, torch.float32)

    @property
    def scheduled(self) -> dict[str, Schedule]:
        """Every schedule of the objective by the name it is logged under."""
        inner = {f"{label}.{name}": s for label, loss in self._items for name, s in loss.schedules.items()}
        return {**self.schedules, **inner}

    @property
    def forgetful(self) -> list[Loss]:
        """The losses without a memory: what they write, they write in a forward pass."""
        return [loss for label, loss in self._items if label not in self.remembering]

    def _term_weights(self) -> list[float]:
        return [self.weights[label] for label, _ in self.terms]

    @property
    def changing(self) -> bool:
        """Whether a scalar may have another value at the next step: it has a schedule, or a weight has been set."""
        if self.schedules or self._given != self._followed:
            return True
        return any(loss.schedules for _, loss in self._items)

    def follow_weights(self, given: Mapping[str, float | Schedule] | None = None) -> None:
        """Take over weights that have been set since this was last asked, in the mapping that was given or another."""
        self._given = self._given if given is None else given
        if self._given == self._followed:
            return
        before, self._followed = self._followed, dict(self._given)
        for label in {*before, *self._followed}:
            if label not in self.losses:
                raise ConfigurationError(f"weights names {label!r}, which is no loss; {nearest(label, self.losses)}")
            if before.get(label) is not self._followed.get(label):
                self._set_weight(label, self._followed.get(label, 1.0))
                if f"{PEER}{label}" in self.peers:
                    self._set_weight(f"{PEER}{label}", copy.deepcopy(self._followed.get(label, 1.0)))
        self.term_weights = self._term_weights()

    def advance(self, progress: Progress) -> None:
        """Set every scheduled scalar to its value for the step that is about to run."""
        self.follow_weights()
        self.set_scalars({name: schedule.value(progress) for name, schedule in self.scheduled.items()})

    def set_scalars(self, values: Mapping[str, float]) -> None:
        """Set scheduled scalars, by the names of :meth:`scalars`; one that is not named stays as it is."""
        for name in self.schedules:
            label = name.removeprefix("weights.")
            self.weights[label] = float(values.get(name, self.weights[label]))
        self.term_weights = self._term_weights()
        for label, loss in self._items:
            for name in loss.schedules:
                loss.__dict__[name] = float(values.get(f"{label}.{name}", loss.__dict__[name]))

    def scalars(self) -> dict[str, float]:
        """Current values of the scheduled scalars."""
        values = {name: self.weights[name.removeprefix("weights.")] for name in self.schedules}
        for label, loss in self._items:
            values.update({f"{label}.{name}": getattr(loss, name) for name in loss.schedules})
        return values

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The losses' own parameters, by label."""
        labels = {name: label for label, name in self.module_names.items()}
        parts = ((name.partition("."), parameter) for name, parameter in self.modules.named_parameters())
        return [(f"{labels[module]}.{rest}", parameter) for (module, _, rest), parameter in parts]

    def end_step(self) -> None:
        """Let losses write down what they remember of the step's items."""
        for label, loss in self.remembering.items():
            try:
                loss.end_step()
            except Exception as error:
                raise_attributed(error, label, loss)

    def masks(self, batch: Batch) -> list[Tensor | None]:
        """Which items count for each term, from inputs, labels, mask and weights only."""
        item_weights.check_weights(batch)
        alive = item_weights.counting(batch)
        masks: list[Tensor | None] = []
        for label, loss in self._items:
            try:
                valid = loss.valid(self.heads.relabelled(label, batch))
                if label in self.unseen:
                    check_valid(loss, valid, batch)
            except Exception as error:
                raise_attributed(error, label, loss)
            if loss.scope == "batch" and not (valid is None or (isinstance(valid, Tensor) and valid.ndim == 1)):
                raise LossError(
                    f"{type(loss).__name__}.valid returned {describe(valid)}; a loss of scope 'batch' compares whole "
                    "items, so expected None or one bool tensor (B,) for all its terms",
                    label,
                )
            if loss.scope == "batch":
                item_weights.check_alike(label, batch)
            for term in loss.terms:
                mask = valid if valid is None or isinstance(valid, Tensor) else valid.get(term)
                masks.append(mask if alive is None else _both(mask, alive))
        return masks

    def _check_range(self, label: str, seen: Batch, host: Batch | None) -> None:
        """Check labels on the host against the classes of these very logits: their number may vary."""
        labels: object = None if host is None else self.heads.relabelled(label, host).labels
        if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.device.type == "cpu":
            check_range(labels, seen.student.logits.shape[-1], ignored(self.losses[label]))

    def count(self, batch: Batch, masks: list[Tensor | None]) -> list[float]:
        """Each term's share of its D: valid items, or the sum of their weights where the batch has weights.

        A mask that leaves nothing out is replaced by None, the cheap path.
        """
        for position, mask in enumerate(masks):
            if mask is not None and mask.ndim == 1 and bool(mask.all()):
                masks[position] = None
        return [item_weights.total(batch, mask) for mask in masks]

    def view(self, label: str, batch: Batch) -> Batch:
        """The batch as a loss sees it: its own heads; where the teacher learns too, each is still while one learns."""
        batch = self.heads.view(label, batch)
        if not self.peers or not batch.has_teacher or self.losses[label].needs.teacher_gradients:
            return batch
        return exchanged(batch) if label in self.peers else settled(batch)

    def evaluate(
        self, batch: Batch, masks: Masks, counts: Sequence[float], divisors: Sequence[float], scale: Weight = 1.0
    ) -> tuple[Tensor, list[Tensor]]:
        """The scalar to differentiate for one micro-batch, and each term's detached share of it.

        Args:
            batch: the micro-batch with outputs.
            masks: its masks, one per term.
            counts: what its valid items come to, one per term.
            divisors: D of each term: what the valid items of the whole optimizer step come to.
            scale: loss scale of mixed precision.
        """
        total: Tensor | None = None
        shares: list[Tensor] = []
        position = 0
        for label, loss in self._items:
            weights: dict[str, Weight] = {}
            for at, term in enumerate(loss.terms, position):
                factor = (self.weights[label] / divisors[at] if divisors[at] else 0.0) * scale
                if loss.scope == "batch":
                    weights[term] = factor * counts[at]
                    continue
                each = item_weights.spread(batch, masks[at], self.dtype, self.device)
                weights[term] = factor if each is None else each * factor
            try:
                seen = self.view(label, batch)
                if label in self.on_device:
                    self._check_range(label, seen, batch.host)
                part, sums = self._weigh(label, seen, masks[position], weights)
            except ConfigurationError as error:
                raise_attributed(error, label, loss)
            total = part if total is None else total + part
            for term in loss.terms:
                shares.append(sums[term])
            position += len(loss.terms)
        if total is None:
            raise ConfigurationError("there is no loss to train on: give Engine(losses=...) at least one")
        return total, shares

    def _weigh(
        self, label: str, batch: Batch, mask: Tensor | None, weights: Mapping[str, Weight]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A loss's weighted sum over the items that count; one of weight 0 is not computed, unless it keeps state."""
        loss, seen = self.losses[label], batch
        if self.weights[label] == 0.0 and not keeps_state(loss):
            return nothing(loss, batch)
        if loss.scope == "batch":
            found = counted(batch, mask)
            if found is None:
                return nothing(loss, batch)
            seen = found
        try:
            return self._first_sum(label, seen, weights) if label in self.unseen else loss.weighted_sum(seen, weights)
        except Exception as error:
            if not isinstance(error, ConfigurationError):
                blame_labels(loss, seen)
            raise_attributed(error, label, loss)

    def _first_sum(
        self, label: str, batch: Batch, weights: Mapping[str, Weight]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A loss's weighted sum the first time, with a look at the values that it is made of."""
        loss = self.losses[label]
        kept: dict[str, Any] = {}
        try:
            with recorded_values(loss) as kept:
                total = loss.weighted_sum(batch, weights)
        finally:
            if "given" in kept:
                values = check_values(loss, batch, weights, kept["given"])
                masks = {term: isinstance(weight, Tensor) and weight.ndim > 1 for term, weight in weights.items()}
                warn_of_padded_values(label, loss, batch, values, masks, self._notices)
        self.unseen.discard(label)
        return total


def raise_attributed(error: Exception, label: str, loss: Loss) -> NoReturn:
    """Raise what came out of a loss with its label, and where its code comes from."""
    named = attributed(error, label, loss)
    if named is error:
        raise error
    raise named from error


def blame_labels(loss: Loss, batch: Batch) -> None:
    """Say what is wrong with the labels of a batch, where a loss that reads them has raised.

    Raises:
        ConfigurationError: they are of another form than in the first step, or out of range.
    """
    labels = batch.labels
    if not (loss.needs.labels and loss.needs.logits and isinstance(labels, Tensor)):
        return
    logits = batch.student.logits
    if loss.needs.classes == "exclusive":
        check_labels(loss, logits, labels)
    elif not labels.is_floating_point() and labels.shape == logits.shape[:-1]:
        check_range(labels, logits.shape[-1], ignored(loss))


def counted(batch: Batch, mask: Tensor | None) -> Batch | None:
    """What a loss of scope ``"batch"`` sees: the items that count; None where none does."""
    if mask is None:
        return batch if batch.size else None
    items = mask.nonzero().flatten()
    return batch.take(items) if len(items) else None


def keeps_state(loss: Loss) -> bool:
    """Whether computing a loss leaves something behind in it: a memory bank, running statistics.

    Another one is left out while its weight is 0, as in a stage of training that is not its own.
    """
    kind = type(loss)
    hooks = kind.end_step is not Loss.end_step or kind.get_extra_state is not nn.Module.get_extra_state
    return hooks or next(loss.buffers(), None) is not None


def nothing(loss: Loss, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over no items: 0, with a gradient of 0 for all that the loss may depend on."""
    outputs = [
        torch.where(torch.zeros_like(tensor, dtype=torch.bool), tensor, 0.0) for tensor in batch.student.tensors()
    ]
    total = torch.stack([tensor.sum() * 0.0 for tensor in (*outputs, *loss.parameters())]).sum()
    return total, dict.fromkeys(loss.terms, total.detach())


def _both(valid: Tensor | None, mask: Tensor) -> Tensor:
    """Both masks at once; ``mask`` is per item."""
    return mask if valid is None else valid & mask.view(-1, *[1] * (valid.ndim - 1))
