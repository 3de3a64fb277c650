"""Mixed precision: autocast around the models, off inside losses, and the loss scale of fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from kdengine.api import ConfigurationError

PrecisionName: TypeAlias = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How the forward pass computes.

    Args:
        name: ``fp32``, or ``bf16`` / ``fp16`` for autocast; fp16 scales the loss.
        device: where training runs.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        if name not in ("fp32", *_DTYPES):
            raise ConfigurationError(f"precision must be 'fp32', 'bf16' or 'fp16', got {name!r}")
        self.name = name
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None
        self._one = torch.ones((), device=device)
        self._nothing = nullcontext()

    def models(self) -> AbstractContextManager[Any]:
        """Context for running the models."""
        if self.name == "fp32":
            return self._nothing
        return torch.autocast(self.device.type, dtype=_DTYPES[self.name])

    def losses(self) -> AbstractContextManager[Any]:
        """Context for running the losses: autocast is off."""
        return self._nothing if self.name == "fp32" else torch.autocast(self.device.type, enabled=False)

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
