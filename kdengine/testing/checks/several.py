"""Two processes for real: each with its own items, joined by gloo."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.testing import pair
from kdengine.testing.case import Case, evaluate
from kdengine.testing.trial import Trial, promises

ROWS = (5, 2)
"""Items of each process."""


@promises("two processes", "two real processes give the same loss and gradient as one, and remember the same")
def two_processes(case: Case, trial: Trial) -> None:
    """A step in two processes against the same step in one; memories are compared between the processes."""
    loss = case.make()
    remembers = bool(case.objective(loss).remembering)
    if not case.item_scope and not remembers:
        trial.skip("a loss of scope 'batch' without a memory promises nothing of several processes")
    trial.tries(f"gloo, with {ROWS[0]} and {ROWS[1]} items")
    torch.manual_seed(0)
    try:
        one, other = pair.run(case, ROWS)
    except pair.Unreachable as error:
        trial.skip(str(error))
    except pair.Fallen as error:
        trial.fail(str(error), error)
    for name in (name for name in one if name.startswith("memory.")) if remembers else ():
        what = f"in two processes, what they remember as {name.removeprefix('memory.')!r}"
        trial.close(what, [other[name].double()], [one[name].double()], 0.0)
    if case.item_scope:
        whole = evaluate(case, loss, case.batch(sum(ROWS)))
        trial.close("in two processes, the loss", [one["total"]], [whole.total], 1e-12)
        trial.close("in two processes, the gradient", _gradients(one), whole.gradients, 1e-12)


def _gradients(found: dict[str, Tensor]) -> list[Tensor]:
    numbers = sorted(int(name.removeprefix("gradient.")) for name in found if name.startswith("gradient."))
    return [found[f"gradient.{number}"] for number in numbers]
