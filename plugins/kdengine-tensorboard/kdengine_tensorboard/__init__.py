"""TensorBoard for kdengine: offers the logger ``tensorboard``."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components

kdengine_hook_version = 1


@hookimpl
def kdengine_loggers() -> Components:
    """Offer the logger; TensorBoard itself is imported when a fit uses it."""
    return {"tensorboard": "kdengine_tensorboard.logger:TensorBoard"}
