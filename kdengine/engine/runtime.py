"""The seam between the loop and where it runs; this version holds one process on one device.

The loop asks for everything that differs between one process and several here and nowhere else: placing and
wrapping models, delaying gradient sums, summing counts, agreeing on decisions, ending.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from kdengine.api.errors import ConfigurationError


class Runtime:
    """One process on one device.

    Attributes:
        device: where models and batches live.
        rank: this process among ``world``.
        world: number of processes.
    """

    rank = 0
    world = 1

    def __init__(self, device: str | torch.device = "auto") -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigurationError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but this version of kdengine trains in one process; "
                "start it without torchrun"
            )
        self.device = choose_device(device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device."""
        return module.to(self.device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap the student for gradient sums; the module itself when there is one process."""
        return module

    def accumulate(self) -> AbstractContextManager[None]:
        """Context of every micro-batch but a step's last, which alone sums gradients over processes."""
        return nullcontext()

    def sum_counts(self, counts: Sequence[int]) -> Sequence[int]:
        """Sum each count over processes."""
        return counts

    def agree(self, decision: bool) -> bool:
        """Whether any process decided so."""
        return decision

    def end(self) -> None:
        """Leave: nothing to do for one process."""


def choose_device(device: str | torch.device) -> torch.device:
    """``auto``: cuda, then mps, then cpu; anything else must exist here.

    Raises:
        ConfigurationError: the device is unknown or absent.
    """
    if device != "auto":
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError) as error:
            raise ConfigurationError(
                f"device {str(device)!r} cannot be used here: {error}; try 'auto' or 'cpu'"
            ) from error
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
