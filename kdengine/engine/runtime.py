"""Where a fit runs: its device, and the processes that it shares the work with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdengine._launch import local_rank
from kdengine.api.errors import ConfigurationError
from kdengine.api.processes import Processes, join
from kdengine.engine.loader import Share
from kdengine.engine.shards import local


class Runtime:
    """A device, and the processes that train together.

    Args:
        device: ``auto`` (cuda, mps, cpu) or a device.

    Attributes:
        device: where models and batches live.
    """

    def __init__(self, device: str | torch.device = "auto") -> None:
        self.device = choose_device(device)

    def __getstate__(self) -> dict[str, Any]:
        """The device alone: processes meet anew where a copy is used."""
        return {"device": self.device}

    @cached_property
    def processes(self) -> Processes:
        """The processes of this training, which meet when a fit or an evaluation begins."""
        return join()

    @property
    def several(self) -> bool:
        """Whether there are several processes."""
        return self.processes.world > 1

    @property
    def share(self) -> Share:
        """Which part of a batch this process takes."""
        return self.processes.rank, self.processes.world

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.processes.is_main

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device."""
        return module.to(self.device)

    def replicate(self, module: nn.Module) -> None:
        """Give every process the main one's parameters and buffers."""
        if self.several:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def replicate_buffers(self, *modules: nn.Module) -> None:
        """Give every process the main one's buffers: running statistics, which each has gathered from its own items."""
        if self.several:
            for module in modules:
                for buffer in module.buffers():
                    dist.broadcast(local(buffer.detach()), src=0)

    def sum_counts(self, counts: Sequence[float]) -> Sequence[float]:
        """Sum each count over processes in float64, so exactly that all get the same bits."""
        if not self.several:
            return counts
        bits = torch.tensor(counts, dtype=torch.float64).view(torch.int64).tolist()
        every = torch.tensor(self.processes.gather(bits), dtype=torch.int64).view(torch.float64)
        return [math.fsum(column) for column in zip(*every.tolist(), strict=True)]

    def sum_values(self, values: Tensor) -> Tensor:
        """Sum a small tensor over processes, in place and without a look at it from the host."""
        if self.several:
            dist.all_reduce(values)
        return values

    def any(self, decision: bool) -> bool:
        """Whether any process decided so."""
        return decision if not self.several else bool(self.processes.largest([decision])[0])


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
        return torch.device("cuda", _number_of_gpu())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _number_of_gpu() -> int:
    try:
        number = local_rank()
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    return torch.cuda.current_device() if number is None else number
