"""Each label a distribution of its own: yes with probability sigmoid(z / T), or no."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.ops import kd_loss


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(Bernoulli(sigmoid(t / T)) || Bernoulli(sigmoid(s / T)))`` of each element.

    A sigmoid is the softmax over a logit and 0, so the operator of two classes computes it, without cancellation.

    Example:
        >>> bernoulli_kl(torch.tensor([1.0]), torch.tensor([1.0]), 2.0)
        tensor([0.])
    """
    return kd_loss(_with_zero(student), _with_zero(teacher), temperature=temperature, reduction="none")


def bernoulli_entropy(teacher: Tensor, temperature: float) -> Tensor:
    """``-p log p - (1 - p) log(1 - p)`` of each element, p = sigmoid(t / T), in nats and without a gradient."""
    with torch.no_grad():
        scaled = teacher / temperature
        nats: Tensor = torch.special.entr(scaled.sigmoid()) + torch.special.entr((-scaled).sigmoid())
        return nats


def _with_zero(logits: Tensor) -> Tensor:
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1)
