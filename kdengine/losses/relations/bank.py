"""A memory with one embedding for each item of a data set."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdengine.losses.relations.embeddings import unit


class Bank(nn.Module):
    """The embedding that each item had last, averaged with those before; a buffer, so part of every checkpoint.

    It begins with random vectors of a length of about 1.

    Args:
        items: size of the data set.
        width: of an embedding.
        device: where it is.
    """

    def __init__(self, items: int, width: int, device: torch.device) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width / 3)
        rows = torch.empty(items + 1, width, device=device).uniform_(-bound, bound)
        rows[items] = 0.0
        self.register_buffer("rows", rows)  # the last row takes what is not to be kept
        self.rows: Tensor

    @staticmethod
    def size(items: int, width: int) -> int:
        """Bytes of a bank in float32."""
        return 4 * (items + 1) * width

    @property
    def embeddings(self) -> Tensor:
        """All of them, ``(items, width)``."""
        return self.rows[:-1]

    def remember(self, places: Tensor, embeddings: Tensor, momentum: float) -> None:
        """Move embeddings towards new ones, ``(N, width)``, and back to length 1.

        Nothing is kept of an embedding that is not finite, nor of one whose place is ``items``; of an item that comes
        twice the last one counts.

        Args:
            places: positions in the data set, ``(N,)``.
            embeddings: of length 1.
            momentum: share of the old embedding.
        """
        last = len(self.rows) - 1
        turn = torch.arange(len(places), device=places.device)
        latest = torch.full((last + 1,), -1, device=places.device).scatter_reduce_(0, places, turn, "amax")
        kept = (latest[places] == turn) & embeddings.isfinite().all(dim=1)
        places = torch.where(kept, places, last)
        moved = unit(momentum * self.rows[places] + (1 - momentum) * embeddings)
        self.rows.index_copy_(0, places, moved)
        self.rows[last] = 0.0
