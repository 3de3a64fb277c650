"""Builtin models: small ones for examples, CIFAR ResNets, and whatever torchvision has."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components

kdengine_hook_version = 1

RESNETS = (
    "resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4",
)  # fmt: skip


@hookimpl
def kdengine_models() -> Components:
    """Offer the builtin models."""
    return {
        "mlp": "kdengine.models.mlp:MLP",
        "tutorial_teacher": "kdengine.models.tutorial:TutorialTeacher",
        "tutorial_student": "kdengine.models.tutorial:TutorialStudent",
        "cifar_resnet": "kdengine.models.resnet:CifarResNet",
        **{name: f"kdengine.models.resnet:{name}" for name in RESNETS},
        "torchvision": "kdengine.models.torchvision:torchvision",
    }
