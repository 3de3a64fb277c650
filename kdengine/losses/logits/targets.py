"""Logits taken apart into those of an item's own class and those of the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kdengine.api import Batch, ConfigurationError
from kdengine.api.batch import describe
from kdengine.losses.logits.labels import class_ids


class Parts(NamedTuple):
    """Logits ``z`` of ``(B, ..., V)`` apart.

    Attributes:
        target: logit of the item's own class, ``(B, ...)``.
        others: the logits with -inf at the own class, ``(B, ..., V)``; zeros where no other class exists, so that they
            always are a distribution.
        alone: bool ``(B, ...)``, where no other class exists (a single class, or all others masked).
    """

    target: Tensor
    others: Tensor
    alone: Tensor

    def binary(self, temperature: float) -> Tensor:
        """Logits of "own class" and "any other" at a temperature, ``(B, ..., 2)``: z_y / T and log sum exp(z_v / T)."""
        rest = torch.where(self.alone, -torch.inf, (self.others / temperature).logsumexp(dim=-1))
        return torch.stack([self.target / temperature, rest], dim=-1)


def own_classes(batch: Batch, loss: str, ignore_index: int) -> Tensor:
    """The class id of each item, ``(B, ...)``; class 0 where there is none, which ``valid`` leaves out.

    Raises:
        ConfigurationError: labels are missing, are probabilities, have another shape than the logits or, on the host,
            are outside of the classes.
    """
    labels, logits = class_ids(batch, loss), batch.student.logits
    if labels.shape != logits.shape[:-1]:
        raise ConfigurationError(
            f"the loss {loss} needs a class id for each row of logits, {tuple(logits.shape[:-1])}, but the labels are "
            f"{describe(labels)}"
        )
    ids = labels.masked_fill(labels == ignore_index, 0).long()
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= logits.shape[-1]:
            raise ConfigurationError(
                f"the loss {loss} needs labels from 0 to {logits.shape[-1] - 1} (or ignore_index, {ignore_index}), "
                f"got {low if low < 0 else high}"
            )
    return ids


def split(logits: Tensor, own: Tensor) -> Parts:
    """Take logits ``(B, ..., V)`` apart at the own classes ``(B, ...)``."""
    position = own.unsqueeze(-1)
    others = logits.scatter(-1, position, -torch.inf)
    alone = (others == -torch.inf).all(dim=-1)
    return Parts(logits.gather(-1, position).squeeze(-1), others.masked_fill(alone.unsqueeze(-1), 0.0), alone)
