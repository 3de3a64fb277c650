"""Builtin loggers."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components

kdengine_hook_version = 1


@hookimpl
def kdengine_loggers() -> Components:
    """Offer the builtin loggers."""
    return {
        "console": "kdengine.loggers.console:Console",
        "jsonl": "kdengine.loggers.jsonl:Jsonl",
        "steps": "kdengine.loggers.steps:Steps",
    }
