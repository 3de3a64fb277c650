"""No waiting for an accelerator."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from kdengine.api import Batch, Weight
from kdengine.testing.case import Case, differentiate
from kdengine.testing.device import Unavailable, Waits, place_of, watched
from kdengine.testing.samples import change, differentiable, outputs_of, without_outputs
from kdengine.testing.trial import Trial, promises


@promises("synchronization", "nothing waits for an accelerator: no value is read on the host, no data copied from it")
def synchronization(case: Case, trial: Trial) -> None:
    """Weighted sum and gradient on tensors that have no values, as an accelerator's have none before it is asked.

    Reading one is refused, and so are copies between host and device and operations whose result's size depends on
    values.
    """
    loss, source = case.make(torch.float32), case.batch()
    masks = case.objective(loss).masks(without_outputs(source))
    loss.to("meta")
    batch, leaves = differentiable(_on_device(source))
    leaves += loss.parameters()
    choices: list[dict[str, Weight]] = [dict.fromkeys(loss.terms, 0.5)]
    if case.item_scope:
        shapes = [(source.size,) if mask is None else mask.shape for mask in masks]
        choices.append(
            {term: torch.empty(shape, device="meta") for term, shape in zip(loss.terms, shapes, strict=True)}
        )
    trial.tries("weighted sum and gradient on the meta device, every operator watched")
    for weights in choices:
        try:
            with watched():
                differentiate(loss.weighted_sum(batch, weights)[0], leaves)
                loss.end_step()
        except Waits as error:
            trial.fail(f"it waits for an accelerator{place_of(error)}: {error}", error)
        except Unavailable as error:
            trial.skip(f"it cannot be tried without an accelerator: {error}")


def _on_device(batch: Batch) -> Batch:
    """The batch in float32 on the device that holds no values."""

    def move(tensor: Tensor) -> Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, device="meta", dtype=dtype)

    moved = change(batch, move)
    for output in outputs_of(moved):
        if output.module is not None:
            output.module = copy.deepcopy(output.module).to("meta")
    return moved
