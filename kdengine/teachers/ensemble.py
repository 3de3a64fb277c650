"""Several teachers as one: the weighted mean of what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError, TeacherSource
from kdengine.api.batch import describe
from kdengine.api.loss import wide
from kdengine.api.teacher import FrozenModel


class Ensemble(TeacherSource):
    """The weighted mean of several frozen teachers, with logits ``t_k`` and weights ``w_k`` that sum to 1.

    ``mean = "probabilities"``, the arithmetic mean of their distributions at a temperature T::

        p = sum_k w_k softmax(t_k / T),    logits T log p

    so that ``softmax(logits / T)`` is ``p``: a loss of the same temperature sees the mean itself. As cross-entropy is
    linear in its target, its gradient is that of the weighted sum of the losses of each teacher.
    ``mean = "logits"``, the geometric mean of their distributions, at every temperature alike::

        logits = sum_k w_k t_k

    Hinton et al. 2015, section 1, name both means; You et al. 2017 average softened outputs. The arithmetic mean is the
    default: it is what an ensemble predicts, and one teacher that excludes a class does not exclude it for all.

    ``confidence`` weights each item by how sure its teachers are, with ``c_k`` in ``w_k``'s place where the weights are
    equal, else proportional to ``w_k c_k``::

        c_k = (1 - exp(L_k) / sum_j exp(L_j)) / (K - 1)

    where ``L_k`` is the cross-entropy of teacher k with the item's label (``"labels"``; Zhang et al. 2022, the weights
    of predictions), or the entropy of its distribution (``"entropy"``: the same formula without labels, which is not of
    that paper). By labels, an item that has none has the fixed weights, and so has every item of an evaluation.

    The weights ``c_k`` sum to 1, as in the paper's equation. The code that was published with it divides their sum by K
    once more: the gradient of ``kd`` here is K times that of the code's term. A weight from there (its alpha) carries
    over divided by K.

    Features of teacher k are named with its number: ``"0.layer3"``. The teachers must have the same classes; each may
    have a device, a dtype and an input transform of its own, as a ``LiveTeacher``, or be a cache.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 1; arXiv:1503.02531

        You et al., "Learning from Multiple Teacher Networks", KDD 2017

        Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022; arXiv:2201.00007

    Args:
        members: the teachers: modules, or sources that do not evolve.
        weights: of the teachers; equal when absent. They are divided by their sum.
        mean: ``"probabilities"`` or ``"logits"``.
        temperature: T of ``"probabilities"``: that of the loss.
        confidence: ``"labels"``, ``"entropy"`` or None.

    Raises:
        ConfigurationError: there is no teacher, one evolves, the weights are no weights of theirs, or their classes
            differ.

    Example:
        >>> first, second = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> for layer, bias in ((first, [0.0, 0.0]), (second, [math.log(3.0), 0.0])):
        ...     _ = layer.requires_grad_(False).weight.zero_(), layer.bias.copy_(torch.tensor(bias))
        >>> Ensemble([first, second]).forward(Batch(torch.zeros(1, 1))).softmax(dim=-1)
        tensor([[0.6250, 0.3750]])
    """

    wraps = "sources"
    gives_logits = True

    def __init__(
        self,
        members: Sequence[nn.Module | TeacherSource],
        weights: Sequence[float] | None = None,
        mean: Literal["probabilities", "logits"] = "probabilities",
        temperature: float = 1.0,
        confidence: Literal["labels", "entropy"] | None = None,
    ) -> None:
        self.members = [_as_member(position, member) for position, member in enumerate(members)]
        if not self.members:
            raise ConfigurationError("ensemble: expected at least one teacher, got none")
        if mean not in ("probabilities", "logits"):
            raise ConfigurationError(f"ensemble: mean must be 'probabilities' or 'logits', got {mean!r}")
        if confidence not in (None, "labels", "entropy"):
            raise ConfigurationError(f"ensemble: confidence must be 'labels', 'entropy' or None, got {confidence!r}")
        if not (0.0 < temperature < math.inf):
            raise ConfigurationError(f"ensemble: temperature must be above 0, got {temperature}")
        self.weights = shares(weights, len(self.members))
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.mean = mean
        self.temperature = temperature
        self.confidence = confidence
        self.gives_features = all(member.gives_features for member in self.members)
        self.ignore_buffers = _numbered(self.members)

    def modules(self) -> list[nn.Module]:
        """The modules of all teachers, in their order."""
        return [module for member in self.members for module in member.modules()]

    def prepare(self, student: nn.Module) -> None:
        """Prepare each teacher."""
        for member in self.members:
            member.find_logits = self.find_logits
            member.prepare(student)

    def place(self, device: torch.device) -> None:
        """Move each teacher to where it runs."""
        for member in self.members:
            member.place(device)

    def forward(self, batch: Batch) -> Tensor:
        """The logits of the mean, ``(B, ..., V)`` in float32 or float64."""
        logits = [wide(self._logits(position, batch)) for position in range(len(self.members))]
        if len({each.shape for each in logits}) > 1:
            given = ", ".join(f"teacher {k} {tuple(each.shape)}" for k, each in enumerate(logits))
            raise ConfigurationError(
                f"an ensemble takes its mean class by class, but its teachers' logits have different shapes: {given}; "
                "give each teacher a head with the same classes"
            )
        every = torch.stack(logits)  # (K, B, ..., V)
        weights = self._weights(every, batch).unsqueeze(-1)  # (K, 1 or B, ..., 1)
        if self.mean == "logits":
            return torch.where(weights > 0, weights * every, 0.0).sum(dim=0)
        softened = torch.log_softmax(every / self.temperature, dim=-1)
        return torch.logsumexp(softened + weights.log(), dim=0) * self.temperature

    def _logits(self, position: int, batch: Batch) -> Tensor:
        member = self.members[position]
        output = member.forward(batch)
        logits = output if member.gives_logits else self.find_logits(output)
        if logits is None:
            raise ConfigurationError(
                f"teacher {position} of the ensemble gave no logits, but {describe(output)}; pass Engine(output=fn), "
                "where fn(output) returns the logits"
            )
        return logits

    def _weights(self, logits: Tensor, batch: Batch) -> Tensor:
        """Weights of each teacher for each item: ``(K, B, ...)``, or ``(K, 1, ...)`` where all items have the same."""
        place = logits.device, logits.dtype
        if place not in self._on_device:  # once: a copy from the host's memory waits for the device
            self._on_device[place] = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)
        fixed = self._on_device[place].view(-1, *[1] * (logits.ndim - 2))
        if self.confidence is None or len(self.members) == 1:
            return fixed
        if self.confidence == "entropy":
            spread, known = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1), None
        elif batch.labels is None:
            return fixed
        else:
            spread, known = cross_entropies(logits, batch.labels)
        weighted = fixed * confidences(spread)
        sure = weighted / weighted.sum(dim=0, keepdim=True)
        return sure if known is None else torch.where(known, sure, fixed)


def _as_member(position: int, member: nn.Module | TeacherSource) -> TeacherSource:
    if isinstance(member, nn.Module):
        return FrozenModel(member)
    if not isinstance(member, TeacherSource):
        raise ConfigurationError(
            f"ensemble: teacher {position} must be an nn.Module or a kdengine.TeacherSource, got "
            f"{type(member).__name__}"
        )
    if member.evolving:
        raise ConfigurationError(
            f"ensemble: teacher {position} ({type(member).__name__}) evolves while the student trains; an ensemble is "
            "frozen as a whole"
        )
    return member


def _numbered(members: Sequence[TeacherSource]) -> list[str]:
    """The buffers that each member lets change, by their names among the modules of all."""
    found: list[str] = []
    counts = [len(member.modules()) for member in members]
    for position, member in enumerate(members):
        start = sum(counts[:position])
        for pattern in member.ignore_buffers:
            number, _, rest = pattern.partition(".")
            if counts[position] > 1 and number.isdigit():
                pattern = f"{start + int(number)}.{rest}"
            elif counts[position] == 1 < sum(counts):
                pattern = f"{start}.{pattern}"
            found.append(pattern)
    return found


def shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights that sum to 1; equal ones when None.

    >>> shares([1.0, 3.0], 2)
    [0.25, 0.75]
    """
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count or not all(0.0 <= weight < math.inf for weight in weights) or not sum(weights) > 0.0:
        raise ConfigurationError(
            f"ensemble: expected {count} weights, one for each teacher, none below 0 and not all 0; got {list(weights)}"
        )
    return [weight / sum(weights) for weight in weights]


def confidences(spread: Tensor) -> Tensor:
    """``(1 - exp(L_k) / sum_j exp(L_j)) / (K - 1)`` of ``L``: ``(K, ...)``, K > 1; sums to 1 over k.

    >>> confidences(torch.tensor([0.0, 0.0, float("inf")]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    finite = torch.nan_to_num(spread, nan=torch.finfo(spread.dtype).max)  # a teacher that excludes the label
    return (1.0 - finite.softmax(dim=0)) / (len(spread) - 1)


def cross_entropies(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each teacher with each item's label, and which items have one.

    Args:
        logits: ``(K, B, ..., V)``.
        labels: class ids ``(B, ...)``, negative where unlabelled, or probabilities ``(B, ..., V)``, zeros there.

    Returns:
        ``(K, B, ...)``, and ``(B, ...)`` bool.
    """
    likely = torch.log_softmax(logits, dim=-1)
    if labels.shape == likely.shape[1:] and labels.is_floating_point():
        return -torch.where(labels > 0, labels * likely, 0.0).sum(dim=-1), labels.sum(dim=-1) > 0
    if labels.shape != likely.shape[1:-1] or labels.is_floating_point():
        raise ConfigurationError(
            f"ensemble: confidence='labels' needs class ids {tuple(likely.shape[1:-1])} or probabilities "
            f"{tuple(likely.shape[1:])}, got {describe(labels)}"
        )
    chosen = labels.clamp(min=0).expand(likely.shape[:-1]).unsqueeze(-1)
    return -likely.gather(-1, chosen).squeeze(-1), labels >= 0
