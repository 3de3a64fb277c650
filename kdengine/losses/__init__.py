"""Builtin losses."""

from kdengine.api.hooks import Components, hookimpl
from kdengine.losses import hints, logits, relations
from kdengine.losses.hints.hint import Hint
from kdengine.losses.logits.ce import CE
from kdengine.losses.logits.kd import KD
from kdengine.losses.logits.logit_mse import LogitMSE
from kdengine.losses.relations.cc import CC
from kdengine.losses.relations.crd import CRD
from kdengine.losses.relations.icd import ICD
from kdengine.losses.relations.pkt import PKT
from kdengine.losses.relations.rkd import RKD
from kdengine.losses.relations.sp import SP

__all__ = ["CC", "CE", "CRD", "ICD", "KD", "PKT", "RKD", "SP", "Hint", "LogitMSE"]

kdengine_hook_version = 1


@hookimpl
def kdengine_losses() -> Components:
    """The builtin losses."""
    return {**logits.LOSSES, **hints.LOSSES, **relations.LOSSES}
