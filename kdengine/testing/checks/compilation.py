"""The loss under ``torch.compile``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdengine.api import Batch, Loss
from kdengine.testing.case import Case, differentiate, remembered, terms_of
from kdengine.testing.samples import differentiable
from kdengine.testing.trial import Trial, promises

SAME = 1e-10


@promises("compile", "torch.compile changes neither value nor gradient")
def compilation(case: Case, trial: Trial) -> None:
    """Values and gradient traced by dynamo and autograd, against the eager ones; graph breaks are allowed.

    The caches of ``torch.compile`` are emptied first, since a loss made before shares its code with this one.
    """
    loss, source = case.make(), case.batch()
    trial.tries("torch.compile(backend='aot_eager') against eager")
    expected = _run(terms_of, loss, source)
    torch.compiler.reset()
    try:
        compiled: Callable[..., Any] = torch.compile(terms_of, backend="aot_eager", dynamic=False)
    except RuntimeError as error:  # a Python that torch.compile does not know yet
        trial.skip(str(error))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = _run(compiled, loss, source)
    trial.close("under torch.compile, the value", got[0], expected[0], SAME)
    trial.close("under torch.compile, the gradient", got[1], expected[1], SAME)


def _run(
    function: Callable[[Loss, Batch], dict[str, Tensor]], loss: Loss, source: Batch
) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(7)
    batch, leaves = differentiable(source)
    with remembered(loss):
        values = [value for _, value in sorted(function(loss, batch).items())]
        total = torch.stack([value.sum() for value in values]).sum()
        return [value.detach() for value in values], differentiate(total, [*leaves, *loss.parameters()])
