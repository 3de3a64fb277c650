"""Losses on features inside the models."""

from kdengine.api import Loss
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

LOSSES: dict[str, type[Loss]] = {
    "hint": Hint,
    "attention": Attention,
    "nst": NST,
    "fsp": FSP,
    "ofd": OFD,
    "vid": VID,
    "reviewkd": ReviewKD,
    "cosine": Cosine,
    "ab": AB,
    "factor": Factor,
}
