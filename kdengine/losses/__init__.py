"""Builtin losses."""

from kdengine.api.hooks import Components, hookimpl
from kdengine.losses import hints, logits, relations
from kdengine.losses.hints.hint import Hint
from kdengine.losses.logits.bce import BCE
from kdengine.losses.logits.binary_kl import BinaryKL
from kdengine.losses.logits.ce import CE
from kdengine.losses.logits.dist import DIST
from kdengine.losses.logits.dkd import DKD
from kdengine.losses.logits.hard import Hard
from kdengine.losses.logits.jsd import JSD
from kdengine.losses.logits.kd import KD
from kdengine.losses.logits.logit_mse import LogitMSE
from kdengine.losses.logits.mse import MSE
from kdengine.losses.logits.multi_level import MultiLevel
from kdengine.losses.logits.nkd import NKD
from kdengine.losses.logits.reverse_kl import ReverseKL
from kdengine.losses.logits.soft_ce import SoftCE
from kdengine.losses.logits.tvd import TVD
from kdengine.losses.logits.wsld import WSLD

__all__ = [
    "BCE",
    "CE",
    "DIST",
    "DKD",
    "JSD",
    "KD",
    "MSE",
    "NKD",
    "TVD",
    "WSLD",
    "BinaryKL",
    "Hard",
    "Hint",
    "LogitMSE",
    "MultiLevel",
    "ReverseKL",
    "SoftCE",
]

kdengine_hook_version = 1


@hookimpl
def kdengine_losses() -> Components:
    """The builtin losses."""
    return {**logits.LOSSES, **hints.LOSSES, **relations.LOSSES}
