"""Builtin losses."""

from kdengine.api.hooks import Components, hookimpl
from kdengine.losses import hints, logits, relations
from kdengine.losses.hints.ab import AB
from kdengine.losses.hints.attention import Attention
from kdengine.losses.hints.cosine import Cosine
from kdengine.losses.hints.factor import Factor
from kdengine.losses.hints.fsp import FSP
from kdengine.losses.hints.hint import Hint
from kdengine.losses.hints.nst import NST
from kdengine.losses.hints.ofd import OFD
from kdengine.losses.hints.reviewkd import ReviewKD
from kdengine.losses.hints.vid import VID
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
from kdengine.losses.relations.cc import CC
from kdengine.losses.relations.crd import CRD
from kdengine.losses.relations.icd import ICD
from kdengine.losses.relations.pkt import PKT
from kdengine.losses.relations.rkd import RKD
from kdengine.losses.relations.sp import SP

__all__ = [
    "AB",
    "BCE",
    "CC",
    "CE",
    "CRD",
    "DIST",
    "DKD",
    "FSP",
    "ICD",
    "JSD",
    "KD",
    "MSE",
    "NKD",
    "NST",
    "OFD",
    "PKT",
    "RKD",
    "SP",
    "TVD",
    "VID",
    "WSLD",
    "Attention",
    "BinaryKL",
    "Cosine",
    "Factor",
    "Hard",
    "Hint",
    "LogitMSE",
    "MultiLevel",
    "ReverseKL",
    "ReviewKD",
    "SoftCE",
]

kdengine_hook_version = 1


@hookimpl
def kdengine_losses() -> Components:
    """The builtin losses."""
    return {**logits.LOSSES, **hints.LOSSES, **relations.LOSSES}
