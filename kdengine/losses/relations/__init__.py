"""Losses on relations between the items of a batch."""

from kdengine.api import Loss
from kdengine.losses.relations.rkd import RKD

LOSSES: dict[str, type[Loss]] = {"rkd": RKD}
