"""Builtin losses."""

from kdengine.api.hooks import Components, hookimpl
from kdengine.losses.ce import CE
from kdengine.losses.hint import Hint
from kdengine.losses.kd import KD
from kdengine.losses.logit_mse import LogitMSE

__all__ = ["CE", "KD", "Hint", "LogitMSE"]

kdengine_hook_version = 1


@hookimpl
def kdengine_losses() -> Components:
    """The builtin losses."""
    return {"kd": KD, "ce": CE, "logit_mse": LogitMSE, "hint": Hint}
