"""Contrast between the embeddings of student and teacher, with memory banks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError, gather
from kdengine.api.memory import require_memory
from kdengine.losses.arguments import check_number, check_whole
from kdengine.losses.hints.pairs import Paths
from kdengine.losses.relations.bank import Bank
from kdengine.losses.relations.contrast import contrast
from kdengine.losses.relations.embeddings import EmbeddingLoss, unit
from kdengine.losses.relations.negatives import count_negatives

ANCHORS = 64
"""Rows by which Z is measured: as many as a batch."""


class CRD(EmbeddingLoss):
    """Contrastive representation distillation: an item's embeddings in both models are alike, and unlike other items'.

    With s and t an item's embeddings (a linear map of the logits or of a feature, trained with the student and left out
    of its export, divided by its length), S and T what memory banks hold of all M items, and K negatives j of item i::

        -log h(s, T_i) - sum_j log(1 - h(s, T_j))   plus the same with t and S in the places of s and T

        h(s, T_j) = e / (e + K/M)   with   e = exp(s . T_j / nce_t) / Z

    per item (Tian et al. 2020, section 3). At the end of an optimizer step the rows of its items become
    ``momentum * old + (1 - momentum) * new``, of length 1 again.

    The banks stay as they are within a step, so the value is that of an item: any split of a batch gives the same
    gradient, and several processes that of one. The published code writes its banks after each micro-batch. Three more
    things differ from it:

    * Negatives are drawn from all other items, each as likely, with replacement, by a hash of step and item. The code
      draws from a generator, and where its data set does the drawing, from items of other classes only and, where there
      are enough, without replacement. So an item of the same class may be a negative here.
    * Z is M times the mean of ``exp(x . T_j / nce_t)`` over the bank as it begins, as there, but x are 64 random
      rows instead of the first batch, which know as little of the bank: Z does not depend on how batches are cut. With
      few items the two constants differ: by 12 % for 500.
    * 1e-7 is not added to the denominator of h, whose logarithms are exact.

    nce_t is the temperature of a contrast, not of soft targets: the value is not multiplied by its square.

    Cost: two products of a B x D with a D x M matrix, and three matrices B x M for a moment, whatever K is.

    References:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, section 3; arXiv:1910.10699

    Args:
        items: M, the number of items of the data set, whose positions the loader gives; a recipe fills it in.
        feat_dim: D, the width of the embeddings.
        nce_k: K, negatives of each item.
        nce_t: temperature of the inner products.
        momentum: share of the old embedding in the banks, from 0 to below 1.
        student: path of one feature in the student; None for the logits. The paper takes the last embedding.
        teacher: path of one feature in the teacher.
        pool: whether features are averaged over their positions instead of flattened.

    Example:
        >>> loss = CRD(items=50_000, student="pool", teacher="pool")
        >>> loss.scope, loss.needs.index
        ('item', True)
    """

    scope: ClassVar[Literal["item", "batch"]] = "item"

    def __init__(
        self,
        items: int,
        feat_dim: int = 128,
        nce_k: int = 16384,
        nce_t: float = 0.07,
        momentum: float = 0.5,
        student: Paths | None = None,
        teacher: Paths | None = None,
        pool: bool = False,
    ) -> None:
        super().__init__(student, teacher, pool)
        check_whole("crd", "items", items, least=2)
        check_whole("crd", "feat_dim", feat_dim, least=1)
        check_whole("crd", "nce_k", nce_k, least=1)
        check_number("crd", "nce_t", nce_t, above=0.0, scheduled=False)
        check_number("crd", "momentum", momentum, least=0.0, below=1.0, scheduled=False)
        self.items = items
        self.feat_dim = feat_dim
        self.nce_k = nce_k
        self.nce_t = nce_t
        self.momentum = momentum
        self.needs = replace(self.needs, index=True)
        self.student_map: nn.Module = nn.Identity()
        self.teacher_map: nn.Module = nn.Identity()
        self.student_bank: Bank | None = None
        self.teacher_bank: Bank | None = None
        self.key: Tensor
        self.steps: Tensor
        self.log_z: Tensor
        self._seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def setup(self, example: Batch) -> None:
        """Make the linear maps and the banks, if there is memory for them, and set Z.

        Raises:
            ConfigurationError: the number of items is not known, the banks do not fit, or several pairs are named.
        """
        student, teacher = self._pair(example)
        items, width, device = self.items, self.feat_dim, student.device
        self._seen.clear()
        self.student_bank = self.teacher_bank = None  # those of an earlier fit make room
        require_memory(
            f"the loss crd: two memory banks of {items:,} items x {width} numbers",
            2 * Bank.size(items, width),
            device,
            "make feat_dim smaller, train on fewer items, or take a relational loss without a memory: rkd, sp, cc, pkt",
        )
        self.student_map = nn.Linear(student.shape[1], width).to(device)
        self.teacher_map = nn.Linear(teacher.shape[1], width).to(device)
        self.student_bank, self.teacher_bank = Bank(items, width, device), Bank(items, width, device)
        self.register_buffer("key", torch.randint(2**31, (), device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))
        sides = (self.student_bank, self.teacher_bank), (self.teacher_bank, self.student_bank)
        self.register_buffer("log_z", torch.stack([self._log_mean(*side) for side in sides]))

    def valid(self, batch: Batch) -> None:
        """All items count; their positions are checked here, where they are still on the host.

        Raises:
            ConfigurationError: the loader gives no positions, or one outside of the banks.
        """
        index, items = batch.index, self.items
        if index is None:
            raise ConfigurationError("the loss crd needs the items' index; use kdengine.loader for the data")
        known = index if batch.mask is None else index[batch.mask.to(index.device)]
        if not len(known):
            return
        first, last = int(known.min()), int(known.max())
        if first < 0 or last >= items:
            raise ConfigurationError(
                f"the loss crd has banks of {items} items, but the loader gives positions from {first} to {last}; "
                f"expected 0 to {items - 1}: set items to the size of the training set"
            )

    def per_item(self, batch: Batch) -> Tensor:
        """The contrast of both embeddings of each item, ``(B,)``, with sums over its negatives."""
        index, items = batch.index, self.items
        assert index is not None, "valid has looked"
        assert self.student_bank is not None, "setup runs before the first step"
        assert self.teacher_bank is not None
        s, t = self._embed(*self._pair(batch))
        places = index.to(s.device, non_blocking=True)
        if batch.mask is not None:
            places = torch.where(batch.mask.to(s.device, non_blocking=True), places, items)
        if self.training and torch.is_grad_enabled():
            self._seen.append((places, torch.cat([s, t], dim=1).detach()))
        own = places % items  # any, for an item that does not count
        counts = count_negatives(self.key, self.steps, own, items, self.nce_k, s.dtype)

        def told_apart(anchors: Tensor, bank: Bank, log_z: Tensor) -> Tensor:
            shift = log_z + math.log(self.nce_k)
            return contrast(anchors, bank.embeddings, own, counts, temperature=self.nce_t, shift=shift)

        return told_apart(s, self.teacher_bank, self.log_z[0]) + told_apart(t, self.student_bank, self.log_z[1])

    @torch.no_grad()
    def end_step(self) -> None:
        """Write the step's embeddings of all processes into the banks."""
        if not self._seen or self.student_bank is None or self.teacher_bank is None:
            return
        places, both = (gather(torch.cat(parts)) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        for bank, embeddings in zip((self.student_bank, self.teacher_bank), both.chunk(2, dim=1), strict=True):
            bank.remember(places, embeddings, self.momentum)
        self.steps += 1

    def _pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pairs = self.embeddings(batch)
        if len(pairs) != 1:
            raise ConfigurationError(
                f"crd compares one pair of features, but student={list(self.student)} and teacher={list(self.teacher)} "
                f"name {len(pairs)}; add a loss of its own for each"
            )
        return pairs[0]

    def _embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return unit(self.student_map(student)), unit(self.teacher_map(teacher))

    def _log_mean(self, anchors: Bank, bank: Bank) -> Tensor:
        """``log(Z / M)``: of the mean over pairs of a row of one bank, of length 1, and a row of the other."""
        scores = unit(anchors.embeddings[:ANCHORS]) @ bank.embeddings.T / self.nce_t
        return scores.logsumexp(dim=(0, 1)) - math.log(scores.numel())
