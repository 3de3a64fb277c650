"""The entropy of a teacher's outputs: what a cross-entropy has beyond a divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api.loss import wide


def entropy(teacher: Tensor, temperature: float) -> Tensor:
    """``-sum_v p_v log p_v`` with p = softmax(teacher / T), in nats, without a gradient.

    Args:
        teacher: logits, ``(..., V)``; a masked class (-inf) counts nothing.
        temperature: T > 0.

    Returns:
        ``(...)``, in float32 or wider.

    Example:
        >>> entropy(torch.zeros(1, 8), 1.0) / torch.log(torch.tensor(2.0))
        tensor([3.0000])
    """
    with torch.no_grad():
        p = (wide(teacher) / temperature).softmax(dim=-1)
        nats: Tensor = torch.special.entr(p).sum(dim=-1)
        return nats
