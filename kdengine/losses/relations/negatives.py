"""Which other items an item is told apart from: draws that depend on nothing but the step and the item."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


def count_negatives(key: Tensor, step: Tensor, index: Tensor, items: int, draws: int, dtype: torch.dtype) -> Tensor:
    """How often each item of the data set is drawn as a negative of the items of a batch, with replacement.

    Every draw takes one of the other ``items - 1`` with equal probability. It is a hash of key, step, item and number
    of the draw: the same on every device, in every process, and wherever in the step's micro-batches the item stands.

    Args:
        key: seed of the whole training, 0-dim int64.
        step: steps so far, 0-dim int64.
        index: positions of the batch's items in the data set, ``(B,)`` int64.
        items: size of the data set.
        draws: negatives of each item.
        dtype: of the result.

    Returns:
        ``(B, items)``: whole numbers with the sum ``draws`` in each row, 0 for the item itself.

    Example:
        >>> zero = torch.tensor(0)
        >>> count_negatives(zero, zero, torch.tensor([2, 0]), 4, 100, torch.float32).sum(dim=1)
        tensor([100., 100.])
    """
    of_item = scramble(scramble(key & WORD ^ scramble(step & WORD)) ^ index[:, None] & WORD)
    of_draw = scramble(torch.arange(draws, device=index.device))
    others = scramble(of_item ^ of_draw).remainder_(items - 1)
    others += others >= index[:, None]
    counts = torch.zeros(len(index), items, dtype=dtype, device=index.device)
    return counts.scatter_add_(1, others, counts.new_ones(()).expand(others.shape))


def scramble(words: Tensor) -> Tensor:
    """A bijection of the numbers below 2^32, held in int64, that leaves no pattern to see."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97 - 2**32)):  # modulo 2^32, so that no product overflows
        words = (words ^ words >> shift).mul_(factor).bitwise_and_(WORD)
    return words ^ words >> 15
