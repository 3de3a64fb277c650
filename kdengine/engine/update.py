"""The optimizer step: finite or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn

from kdengine.api import NonFiniteError
from kdengine.engine.diagnosis import diagnose, origin
from kdengine.engine.fit import Fit
from kdengine.engine.ledger import StepReport
from kdengine.engine.shards import local
from kdengine.engine.state import rollback


def update(fit: Fit, scale: Tensor | float) -> StepReport | None:
    """Apply the gradients of one step, unless they or the loss are not finite or a controller says so.

    Gradients and loss are inspected on the device. On the CPU the answer is there at once. On an accelerator a
    fused optimizer leaves the update out on the device and the report comes one step late; any other optimizer
    pays one synchronization.

    Returns:
        the report that has become readable: of this step on the CPU, of the one before on an accelerator.
    """
    _inspect(fit)
    report = fit.ledger.close(fit.position.step, scale, fit.found)
    if _gates_buffers(fit):
        fit.buffers.restore_where(fit.position.step, fit.found.tensor)
    intact = report is None or judge(fit, report)
    if fit.settings.clip is not None:
        fit.step_context.gradient_norm, *_ = [fit.strategy.clip(part, fit.settings.clip) for part in fit.clipped]
    skip = False
    if fit.calls.optimizer_step is not None:
        skip = fit.skips(fit.calls.optimizer_step(fit.step_context))
    if not skip and (intact or _is_of_these_weights(fit)):
        _step(fit)
    elif intact or fit.ledger.late:  # else judge has counted this very step
        fit.skipped += 1
    if fit.precision.scaler is not None:
        _rescale(fit.precision.scaler, hopeless=report is not None and _is_hopeless(report))
    return report


def _inspect(fit: Fit) -> None:
    """Raise the flag where a gradient is not finite, without a look at it from the host."""
    if fit.ledger.late:
        fit.found.tensor.zero_()
    if fit.precision.scaler is not None:
        fit.precision.scaler.unscale_(fit.optimizer)
        for found in fit.precision.scaler._found_inf_per_device(fit.optimizer).values():
            fit.found.tensor.add_(found)
        return
    for parameters in fit.kinds:
        find_nonfinite([local(p.grad) for p in parameters if p.grad is not None], fit.found.tensor)
    fit.strategy.reduce_found(fit.found.tensor)


def _gates_buffers(fit: Fit) -> bool:
    """Whether the device puts buffers back, as the next step's forward pass begins before the host could."""
    return fit.ledger.late and fit.settings.nonfinite != "raise" and fit.precision.scaler is None


def _is_of_these_weights(fit: Fit) -> bool:
    """Whether a step's gradients are those of the weights that are there, though the step before it was not finite.

    On an accelerator that report comes when the next step's gradients are complete. They fit the weights that skipping
    has left as they were, and not those that a rollback has put in their place.
    """
    return fit.ledger.late and fit.settings.nonfinite != "rollback"


LEAST_SCALE = 2.0**-8
"""A gradient that overflows in fp16 at a loss scale this small is not one that a smaller scale would mend."""


def _is_hopeless(report: StepReport) -> bool:
    return report.overflow and report.scale <= LEAST_SCALE


def _rescale(scaler: torch.amp.GradScaler, *, hopeless: bool) -> None:
    """Adapt the loss scale; halving it for ever would end in a division by zero."""
    if hopeless:
        scaler.update(LEAST_SCALE)
    else:
        scaler.update()


def _step(fit: Fit) -> None:
    """Step the optimizer, gated by ``found`` where it supports that and by the host where it does not."""
    if fit.precision.scaler is not None:
        fit.precision.scaler.step(fit.optimizer)
    elif fit.ledger.late and getattr(fit.optimizer, "_step_supports_amp_scaling", False):
        fit.optimizer.found_inf = fit.found.tensor  # type: ignore[attr-defined]  # how fused optimizers are gated
        fit.optimizer.step()
        del fit.optimizer.found_inf  # type: ignore[attr-defined]
    elif not (fit.ledger.late and fit.found.take()):
        fit.optimizer.step()


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.zero_grad()``, without the profiler's mark that takes ten times as long as the work itself."""
    if getattr(optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad:
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def find_nonfinite(gradients: list[Tensor], found: Tensor) -> None:
    """Set ``found`` to 1 when any gradient has a NaN or infinity, without synchronizing.

    Uses the kernel behind ``GradScaler.unscale_`` with a scale of one: a single call that reads every gradient once.

    Args:
        gradients: of one dtype and device.
        found: 0-dim float32 on their device.
    """
    values = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
    torch._amp_foreach_non_finite_check_and_unscale_(values, found, _one(found.device))


@lru_cache
def _one(device: torch.device) -> Tensor:
    """The scale that changes nothing."""
    return torch.ones((), device=device)


def by_kind(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters grouped by device and dtype, which the gradients of one call of the kernel have in common."""
    kinds: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return list(kinds.values())


def judge(fit: Fit, report: StepReport) -> bool:
    """Act on a step's report: True when its values are finite, else what the policy says.

    Raises:
        NonFiniteError: policy ``raise``; weights and buffers are those of before the step.
    """
    if math.isfinite(report.loss) and not (report.overflow and (fit.precision.scaler is None or _is_hopeless(report))):
        return True
    if not _gates_buffers(fit):
        fit.buffers.restore(report.step)  # else the device has done so
    names = [
        name
        for name, value in zip(fit.objective.names, report.terms, strict=True)
        if not math.isfinite(value) and fit.objective.weights[name.split(".")[0]]
    ]
    what = "a gradient is not finite"
    if names:
        what = f"loss term {', '.join(origin(fit, name) for name in names)} is not finite"
    where = f"at step {report.step + 1} (epoch {fit.position.epoch + 1})"
    if seen := diagnose(fit, fit.unread[report.step].window, names):
        where += f"; not finite: {seen}"
    if fit.settings.nonfinite == "raise":
        raise NonFiniteError(
            f"{what} {where}; the weights are those of before the step. Lower the learning rate or the temperature, "
            "clip gradients (clip=1.0), or choose nonfinite='skip' or 'rollback'"
        )
    fit.skipped += 1
    fit.loggers.message(f"{what} {where}: policy {fit.settings.nonfinite}, {fit.skipped} so far")
    if fit.settings.nonfinite == "rollback":
        rollback(fit)
    return False
