"""Builtin optimizers: those of torch, by name."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components

kdengine_hook_version = 1


@hookimpl
def kdengine_optimizers() -> Components:
    """Offer torch's first-order optimizers; their arguments are torch's own."""
    return {
        "sgd": "torch.optim:SGD",
        "adam": "torch.optim:Adam",
        "adamw": "torch.optim:AdamW",
        "rmsprop": "torch.optim:RMSprop",
        "adagrad": "torch.optim:Adagrad",
        "radam": "torch.optim:RAdam",
        "nadam": "torch.optim:NAdam",
    }
