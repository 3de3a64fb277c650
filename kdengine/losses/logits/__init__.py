"""Losses on the outputs of the models."""

from kdengine.api import Loss
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

LOSSES: dict[str, type[Loss]] = {
    "kd": KD,
    "ce": CE,
    "logit_mse": LogitMSE,
    "reverse_kl": ReverseKL,
    "jsd": JSD,
    "tvd": TVD,
    "dkd": DKD,
    "nkd": NKD,
    "dist": DIST,
    "wsld": WSLD,
    "multi_level": MultiLevel,
    "soft_ce": SoftCE,
    "hard": Hard,
    "mse": MSE,
    "bce": BCE,
    "binary_kl": BinaryKL,
}
