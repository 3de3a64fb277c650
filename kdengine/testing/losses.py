"""The contract of a loss, check by check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from kdengine.api import Loss
from kdengine.testing.case import Case, Sample
from kdengine.testing.certificate import Certificate, Finding, Outcome
from kdengine.testing.checks import CHECKS
from kdengine.testing.checks.several import two_processes
from kdengine.testing.device import place_of
from kdengine.testing.report import CheckFailed, name_of
from kdengine.testing.samples import Shapes
from kdengine.testing.trial import Check, DoesNotApply, Trial, promises


def check_loss(
    factory: Callable[..., Loss], /, *, sample: Sample | None = None, features: Shapes = None, **arguments: Any
) -> Certificate:
    """Check a loss against everything that the engine relies on, on the CPU and on random batches.

    It stops at the first promise that is broken; :func:`certify_loss` goes on and reports every one.

    * ``per_item`` gives one value (or more) per item for each declared term, without a reduction;
    * the same batch and state give the same bits;
    * ``weighted_sum`` agrees with the default of :class:`kdengine.Loss` to 1e-10, in value and gradient;
    * any split of a batch into micro-batches, and into processes, gives the same gradient to 1e-12 (scope ``"item"``);
    * items without a label do not count in what compares with labels;
    * items that do not count may hold NaN; empty batches and batches of one item are finite;
    * tensors of the batch and the models behind them are left as they are, training mode included;
    * the gradient agrees with finite differences to 1e-5;
    * logits of +-1e4 are finite in half precision and float32, equal outputs and zeros are finite;
    * training goes on bit for bit from a checkpoint;
    * an argument typed ``Scalar`` takes a schedule and follows it;
    * where student and teacher are equal, the value is what ``at_equality`` claims;
    * the gradient keeps its size when the temperature rises; classes without probability change nothing;
    * ``torch.compile`` changes nothing; nothing waits for an accelerator.

    Tolerances are relative to the value that is expected, however small it is; only what rounding leaves of terms that
    are about 1 (7e-15, in a gradient by finite differences 1e-10) is allowed beside.

    Args:
        factory: the loss's class, or a function that makes one.
        sample: ``sample(size, generator) -> Batch`` with float64 outputs, for a loss that needs other batches than
            5 classes with class ids and features of width 6. It must allow 0 items.
        features: shape of the features without the batch, ``(8, 4, 4)``, or of each by its path,
            ``{"layer1": (8, 4, 4)}``.
        arguments: of the factory.

    Returns:
        what was tried and measured.

    Raises:
        AssertionError: the first thing that does not hold, and by how much.

    Example:
        >>> from kdengine.losses import LogitMSE
        >>> check_loss(LogitMSE, center=True).held
        True
    """
    case = Case(name_of(factory), factory, arguments, sample, features)
    rows = []
    with _quiet():
        for finding, error in findings(case):
            if error is not None:
                raise error
            rows.append(finding)
    return certificate(case, rows)


def certify_loss(
    factory: Callable[..., Loss],
    /,
    *,
    sample: Sample | None = None,
    features: Shapes = None,
    processes: bool = False,
    **arguments: Any,
) -> Certificate:
    """Put a loss through every check of :func:`check_loss`, whatever fails, and report each.

    Args:
        factory: the loss's class, or a function that makes one.
        sample: as for :func:`check_loss`.
        features: as for :func:`check_loss`.
        processes: whether to start two processes as well, each with a share of a batch, which takes some seconds; for a
            class or function at the top of a module, with arguments that JSON can say.
        arguments: of the factory.

    Example:
        >>> from kdengine.losses import LogitMSE
        >>> certificate = certify_loss(LogitMSE)
        >>> [finding.check for finding in certificate.rows if finding.outcome == "does not apply"]
        ['labels', 'scalars', 'temperature', 'classes']
    """
    case = Case(name_of(factory), factory, arguments, sample, features)
    with _quiet():
        return certificate(case, [finding for finding, _ in findings(case, [two_processes] if processes else [])])


def certificate(case: Case, rows: Sequence[Finding]) -> Certificate:
    """The findings on one loss."""
    return Certificate(case.name, dict(case.arguments), torch.__version__, tuple(rows))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave random state and gradient mode as they are outside."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        yield


@promises("construction", "the factory gives a kdengine.Loss, and setup runs on a batch of two items")
def construction(case: Case, trial: Trial) -> None:
    """Without it nothing else can be tried."""
    trial.tries("the factory, setup and the parameters in float64")
    case.make()


def findings(case: Case, more: Sequence[Check] = ()) -> Iterator[tuple[Finding, CheckFailed | None]]:
    """What becomes of each promise, one after the other, and the failure where one is broken."""
    made, error = examine(construction, case)
    yield made, error
    for check in (*CHECKS, *more):
        if error is None:
            yield examine(check, case)
        else:
            yield Finding(check.name, check.promise, "", "does not apply", message="there is no loss to try"), None


def examine(check: Check, case: Case) -> tuple[Finding, CheckFailed | None]:
    """Run one check; what the loss itself raises becomes a failure too."""
    torch.manual_seed(0)
    trial = Trial(case.name)
    try:
        check.run(case, trial)
    except DoesNotApply as reason:
        return _finding(check, trial, "does not apply", str(reason)), None
    except CheckFailed as error:
        return _finding(check, trial, "failed", error.said), error
    except Exception as error:
        failure = CheckFailed(case.name, f"{check.name} raised {type(error).__name__}: {error}{place_of(error)}")
        failure.__cause__ = error
        return _finding(check, trial, "failed", failure.said), failure
    return _finding(check, trial, "held"), None


def _finding(check: Check, trial: Trial, outcome: Outcome, message: str = "") -> Finding:
    measured = (None, None) if outcome == "does not apply" else (trial.deviation, trial.allowed)
    return Finding(check.name, check.promise, "; ".join(trial.attempts), outcome, *measured, message)
