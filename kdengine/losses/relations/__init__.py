"""Losses on relations between the items of a batch."""

from kdengine.api import Loss

LOSSES: dict[str, type[Loss]] = {}
