"""A second student as the teacher: both learn, from the labels and from each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdengine.api import Batch, TeacherSource
from kdengine.api.models import call_model


class Peer(TeacherSource):
    """Deep mutual learning: a second student trains at the same time, each taught by the other.

    With the distributions ``p_1`` of the student and ``p_2`` of its peer, and a cross-entropy with the labels each::

        L_1 = CE_1 + KL(p_2 || p_1),    L_2 = CE_2 + KL(p_1 || p_2)

    (Zhang et al. 2018, section 2.) In the paper ``p_1`` is computed again after the student's update and before the
    peer's; here both gradients come from the same two forward passes, and both update in the same step.

    The peer learns by the losses that the student has, with the roles exchanged: those that read logits and labels
    alone, with the same weights and schedules; ``kd`` of temperature 1 and ``ce``, of weight 1 each, are the paper's.
    Each sees the other's output without a gradient. The peer's terms are named ``peer_kd`` and so on, and are part of
    the step's ``loss``. Its parameters are optimized like the student's, named ``teacher.PATH``, by which a parameter
    group may give them other options; they are clipped by their own norm.

    References:
        Zhang et al., "Deep Mutual Learning", CVPR 2018, section 2; arXiv:1706.00384

    Args:
        module: the second student. Its training mode and which of its parameters train are as for the student.
    """

    evolving = True
    learns = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def modules(self) -> list[nn.Module]:
        """The second student."""
        return [self.module]

    def place(self, device: torch.device) -> None:
        """Move it."""
        self.module.to(device)

    def forward(self, batch: Batch) -> Any:
        """Run it, with a graph where gradients are enabled."""
        return call_model(self.module, batch.inputs)

    def state_dict(self) -> dict[str, Any]:
        """Its parameters and buffers; the state of their optimizer is with that of the student's."""
        return {"module": dict(self.module.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.module.load_state_dict(state["module"])
