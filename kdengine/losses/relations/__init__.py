"""Losses on relations between the items of a batch."""

from kdengine.api import Loss
from kdengine.losses.relations.cc import CC
from kdengine.losses.relations.crd import CRD
from kdengine.losses.relations.icd import ICD
from kdengine.losses.relations.pkt import PKT
from kdengine.losses.relations.rkd import RKD
from kdengine.losses.relations.sp import SP

LOSSES: dict[str, type[Loss]] = {"rkd": RKD, "sp": SP, "cc": CC, "pkt": PKT, "icd": ICD, "crd": CRD}
