"""Mixed precision: autocast around the models, off inside losses, and the loss scale of fp16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from kdengine.engine.settings import PrecisionName, check_setting

P = ParamSpec("P")
T = TypeVar("T")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How the forward pass computes.

    Args:
        name: ``fp32``, or ``bf16`` / ``fp16`` for autocast; fp16 scales the loss.
        device: where training runs.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name: PrecisionName = check_setting("precision", name)
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self._one = torch.ones((), device=device)

    def run_model(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a model, under autocast unless the precision is fp32."""
        if self.name == "fp32":
            return call(*args, **kwargs)
        with torch.autocast(self.device.type, dtype=_DTYPES[self.name]):
            return call(*args, **kwargs)

    def run_loss(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what computes losses, with autocast off."""
        if self.name == "fp32":
            return call(*args, **kwargs)
        with torch.autocast(self.device.type, enabled=False):
            return call(*args, **kwargs)

    @property
    def scale(self) -> Tensor | float:
        """The loss scale: 1, or a 0-dim tensor on the device under fp16."""
        return 1.0 if self.scaler is None else self.scaler.scale(self._one)

    def state_dict(self) -> dict[str, Any]:
        """State of the loss scale."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the loss scale."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)
