"""Builtin projectors: from the student's features to the shape of the teacher's."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components

kdengine_hook_version = 1


@hookimpl
def kdengine_projectors() -> Components:
    """Offer the builtin projectors."""
    return {
        "auto": "kdengine.projectors.projectors:auto",
        "linear": "kdengine.projectors.projectors:Linear",
        "mlp": "kdengine.projectors.projectors:MLP",
        "conv1x1": "kdengine.projectors.projectors:Conv1x1",
        "tokens": "kdengine.projectors.tokens:Tokens",
        "sequence": "kdengine.projectors.tokens:TokenRow",
        "resize": "kdengine.projectors.tokens:Resize",
    }
