"""Builtin losses."""

from kdengine.api.hooks import Components, hookimpl
from kdengine.losses import hints, logits, relations
from kdengine.losses.hints.attention import Attention
from kdengine.losses.hints.fsp import FSP
from kdengine.losses.hints.hint import Hint
from kdengine.losses.hints.nst import NST
from kdengine.losses.hints.ofd import OFD
from kdengine.losses.hints.reviewkd import ReviewKD
from kdengine.losses.hints.vid import VID
from kdengine.losses.logits.ce import CE
from kdengine.losses.logits.kd import KD
from kdengine.losses.logits.logit_mse import LogitMSE

__all__ = ["CE", "FSP", "KD", "NST", "OFD", "VID", "Attention", "Hint", "LogitMSE", "ReviewKD"]

kdengine_hook_version = 1


@hookimpl
def kdengine_losses() -> Components:
    """The builtin losses."""
    return {**logits.LOSSES, **hints.LOSSES, **relations.LOSSES}
