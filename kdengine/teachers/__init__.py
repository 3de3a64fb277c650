"""Builtin teacher sources, beside the live module that the engine runs by itself."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components

kdengine_hook_version = 1


@hookimpl
def kdengine_teachers() -> Components:
    """Offer the builtin teacher sources."""
    return {
        "cached": "kdengine.teachers.cached:CachedTeacher",
        "ensemble": "kdengine.teachers.ensemble:Ensemble",
        "ema": "kdengine.teachers.ema:EMA",
        "peer": "kdengine.teachers.peer:Peer",
    }
