"""Each term's share of the gradient, sampled without disturbing training."""

from __future__ import annotations

import torch
from torch import Tensor

from kdengine.api import Batch
from kdengine.engine import random
from kdengine.engine.fit import Fit
from kdengine.engine.forward import run_pair
from kdengine.engine.modes import evaluation_mode


def gradient_shares(fit: Fit, batch: Batch) -> dict[str, float]:
    """``|g_i| / sum_j |g_j|`` where g_i is the gradient of the student's term i on its parameters.

    Measured on one training batch with student and losses in evaluation mode, so that neither batch statistics nor
    memories nor the random state move.
    """
    parameters = [p for p in fit.models.student.parameters() if p.requires_grad]
    own = {
        at: name
        for at, (name, (label, _)) in enumerate(zip(fit.objective.names, fit.objective.terms, strict=True))
        if label not in fit.objective.peers
    }
    with random.preserved(), evaluation_mode(*fit.models.moving, fit.objective.modules):
        run_pair(fit.models, fit.precision, batch)
        norms = {name: _norm(fit, batch, position, parameters) for position, name in own.items()}
    total = sum(norms.values())
    return {name: norm / total for name, norm in norms.items()} if total > 0 else {}


def _norm(fit: Fit, batch: Batch, position: int, parameters: list[torch.nn.Parameter]) -> float:
    masks = fit.objective.masks(batch)
    counts = fit.objective.count(batch, masks)
    only = [count if at == position else 0 for at, count in enumerate(counts)]
    total, _ = fit.precision.run_loss(fit.objective.evaluate, batch, masks, counts, only)
    if not total.requires_grad:
        return 0.0
    gradients: tuple[Tensor | None, ...] = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
