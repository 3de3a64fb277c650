"""Items that do not count, and batches of none and of one."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api.labels import IGNORE_INDEX
from kdengine.testing.case import Case, evaluate
from kdengine.testing.samples import change, without_outputs
from kdengine.testing.trial import Trial, promises


@promises("poison", "items that do not count may hold anything")
def poison(case: Case, trial: Trial) -> None:
    """NaN in the outputs of items that do not count reaches nothing."""
    if not case.item_scope:
        trial.skip("a loss of scope 'batch' is given the items that count alone")
    trial.tries("NaN in the outputs of two items in seven")
    loss, clean = case.make(), case.batch()
    clean.mask = torch.arange(clean.size) % 3 != 2
    masks = case.objective(loss).masks(without_outputs(clean))
    dead = torch.stack([~mask.reshape(clean.size, -1).any(1) for mask in masks if mask is not None]).all(0)
    poisoned = change(clean, lambda t: t, lambda t: _fill(t, dead), lambda t: _fill(t, dead))
    got, expected = evaluate(case, loss, poisoned), evaluate(case, loss, clean)
    trial.finite("NaN in items that do not count reached the loss", [got.total, *got.shares])
    trial.finite("NaN in items that do not count reached the gradient", got.gradients)
    outputs = got.gradients[: len(got.gradients) - len(list(loss.parameters()))]
    for gradient in outputs:
        worst = float(gradient[dead].abs().max())
        trial.require(worst == 0.0, f"items that do not count get a gradient of {worst:.3g}; expected 0")
    what = "NaN in items that do not count: the"
    trial.close(f"{what} loss", [got.total], [expected.total], 1e-12)
    trial.close(f"{what} gradient of the others", got.gradients, expected.gradients, 1e-12)


@promises("labels", "items without a label do not count in what compares with labels")
def unlabelled(case: Case, trial: Trial) -> None:
    """Of a loss that needs class ids, at least one term leaves out the items whose id is ``ignore_index``."""
    loss, batch = case.make(), case.batch()
    labels, ignored = batch.labels, getattr(loss, "ignore_index", IGNORE_INDEX)
    trial.tries(f"items with the label {ignored}")
    if not loss.needs.labels or labels is None or labels.is_floating_point():
        trial.skip("it reads no class ids")
    absent = (labels == ignored).reshape(batch.size, -1).all(dim=-1)
    if not absent.any():
        trial.skip(f"no item of the sample has the label {ignored}")
    masks = case.objective(loss).masks(without_outputs(batch))
    counting = [mask is None or bool(mask.reshape(batch.size, -1).any(dim=-1)[absent].any()) for mask in masks]
    trial.require(
        not all(counting),
        f"items whose label is {ignored} (ignore_index) count in every term, so that the mean over items is too small; "
        "leave valid(batch) to kdengine.Loss, which counts labelled items where needs.labels is True, or return "
        f"batch.labels != {ignored}",
    )


def _fill(tensor: Tensor, dead: Tensor) -> Tensor:
    """NaN in the dead rows."""
    return tensor.masked_fill(dead.view(-1, *[1] * (tensor.ndim - 1)), torch.nan)


@promises("small batches", "an empty batch and a batch of one item give a finite loss and gradient")
def small_batches(case: Case, trial: Trial) -> None:
    """No item, and one item."""
    loss = case.make()
    for size in (0, 1) if case.item_scope else (1,):
        what = f"a batch of {size} item{'s' if size != 1 else ''}"
        trial.tries(what)
        outcome = evaluate(case, loss, case.batch(size))
        trial.finite(f"{what}: the loss", [outcome.total, *outcome.shares])
        trial.finite(f"{what}: the gradient", outcome.gradients)
