"""Builtin metrics of an evaluation."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components

kdengine_hook_version = 1


@hookimpl
def kdengine_metrics() -> Components:
    """Offer the builtin metrics."""
    return {
        "top1": "kdengine.metrics.topk:Top1",
        "top5": "kdengine.metrics.topk:Top5",
        "agreement": "kdengine.metrics.agreement:Agreement",
        "calibration_error": "kdengine.metrics.calibration:CalibrationError",
    }
