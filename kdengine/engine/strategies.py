"""How the processes of a fit share the student: one process, or DDP with a copy in each; FSDP2 is in ``fsdp``.

Gradients are summed, never averaged: every term is already divided by the items of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from kdengine.engine.shard_files import plain

T = TypeVar("T")


class Alone:
    """One process: nothing to wrap and nothing to sum.

    Attributes:
        name: for the record of a checkpoint.
        shards: whether the student's parameters are shards.
    """

    name = "one process"
    shards = False

    def forward(self, call: Callable[..., T], *args: Any) -> T:
        """Run one micro-batch's forward pass, so that its backward pass sums gradients over processes."""
        return call(*args)

    def accumulate(self) -> AbstractContextManager[None]:
        """Context of every micro-batch but a step's last, which alone sums gradients over processes."""
        return nullcontext()

    def complete(self) -> None:
        """After a step's last backward pass: sum what the backward pass did not."""

    def reduce_found(self, found: Tensor) -> None:
        """Let every process know that one found a gradient that is not finite."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor into which a checkpoint's shards are read."""
        return plain(shape, dtype)

    def like(self, present: Tensor, stored: Tensor) -> Tensor:
        """What a checkpoint holds, spread over the processes like a tensor of the fit."""
        return stored

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale gradients down to a norm; returns the norm before."""
        return clip_grad_norm_(parameters, limit)


class Replicated(Alone):
    """PyTorch's DistributedDataParallel over the student, the losses' own parameters and a teacher that evolves.

    Args:
        student: the model that trains.
        losses: all loss modules.
        evolving: the teacher's modules where it evolves: their buffers are kept alike like those of the student.
        unused: whether some parameter gets no gradient, for which DDP must look at every step.
        remembering: names in `losses` of those that keep their buffers equal; DDP would send each at every pass.
    """

    name = "ddp"

    def __init__(
        self,
        student: nn.Module,
        losses: nn.Module,
        evolving: Iterable[nn.Module] = (),
        *,
        unused: bool,
        remembering: Iterable[str] = (),
    ) -> None:
        trained = Trained(student, losses, evolving)
        memories = tuple(f"losses.{name}." for name in remembering)
        kept = [name for name, _ in trained.named_buffers() if name.startswith(memories)] if memories else []
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trained, kept)  # type: ignore[no-untyped-call]
        self._ddp = DistributedDataParallel(trained, find_unused_parameters=unused)
        self._ddp.register_comm_hook(None, lambda _, bucket: sum_bucket(bucket))  # DDP would read annotations
        if not unused and dist.get_world_size() > 2 and not is_watched(trained):
            self._settle_buckets(trained)

    def forward(self, call: Callable[..., T], *args: Any) -> T:
        """The call inside DDP's forward pass, which prepares its sums."""
        return cast("T", self._ddp(call, *args))

    def _settle_buckets(self, trained: nn.Module) -> None:
        """Let DDP arrange its buckets anew before training, which it would do after a process's first backward pass.

        Among three processes or more, the order in which an all-reduce adds the gradients of an element depends on its
        place in the bucket: a resumed process, whose buckets are as at first, would part from one that has lived on.
        Two numbers have one sum in either order.
        """
        parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        self.forward(lambda: torch.stack([(p * 0.0).sum().float() for p in parameters]).sum()).backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None

    def accumulate(self) -> AbstractContextManager[None]:
        """DDP's ``no_sync``."""
        return cast("AbstractContextManager[None]", self._ddp.no_sync())


def is_watched(module: nn.Module) -> bool:
    """Whether a backward pass of nothing would be noticed: by a hook on a gradient, or as the gradient is sparse."""
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(getattr(part, "sparse", False) is True for part in module.modules()) or any(
        getattr(parameter, hook, None) for parameter in module.parameters() for hook in hooks
    )


class Trained(nn.Module):
    """All that changes as one module, for DDP: it sums gradients, and its forward pass is any call."""

    def __init__(self, student: nn.Module, losses: nn.Module, evolving: Iterable[nn.Module]) -> None:
        super().__init__()
        self.student = student
        self.losses = losses
        self.evolving = nn.ModuleList(evolving)

    def forward(self, call: Callable[..., T], *args: Any) -> T:
        """Run the call; DDP finds the parameters it used from what it returns."""
        return call(*args)


def sum_bucket(bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: the sum of a bucket over processes, where DDP itself would average."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None, "asynchronous collectives return their work"
    return cast("torch.futures.Future[Tensor]", work.get_future().then(lambda done: done.value()[0]))


def unused_parameters(total: Tensor, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether a scalar does not depend on some trainable parameter."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    return any(gradient is None for gradient in torch.autograd.grad(total, wanted, allow_unused=True))
