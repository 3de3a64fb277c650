"""Builtin schedules: scalars of the objective as functions of training's progress."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components
from kdengine.schedules.functions import Constant, Cosine, Linear, Piecewise, Step, WarmUp
from kdengine.schedules.on_metric import OnMetric

__all__ = ["Constant", "Cosine", "Linear", "OnMetric", "Piecewise", "Step", "WarmUp"]

kdengine_hook_version = 1


@hookimpl
def kdengine_schedules() -> Components:
    """Offer the builtin schedules."""
    return {
        "constant": Constant,
        "linear": Linear,
        "cosine": Cosine,
        "warmup": WarmUp,
        "step": Step,
        "piecewise": Piecewise,
        "on_metric": OnMetric,
    }
