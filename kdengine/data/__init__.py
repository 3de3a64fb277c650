"""Builtin data sets and transforms."""

from kdengine.api import hookimpl
from kdengine.api.hooks import Components

kdengine_hook_version = 1


@hookimpl
def kdengine_datasets() -> Components:
    """Offer the builtin data sets."""
    return {
        "digits": "kdengine.data.digits:digits",
        "cifar10": "kdengine.data.cifar:cifar10",
        "cifar100": "kdengine.data.cifar:cifar100",
        "image_folder": "kdengine.data.folder:image_folder",
    }


@hookimpl
def kdengine_transforms() -> Components:
    """Offer the builtin transforms of one input and of a whole batch."""
    return {
        "to_tensor": "kdengine.data.transforms:ToTensor",
        "normalize": "kdengine.data.transforms:Normalize",
        "random_crop": "kdengine.data.transforms:random_crop",
        "random_resized_crop": "kdengine.data.transforms:random_resized_crop",
        "random_horizontal_flip": "kdengine.data.transforms:random_horizontal_flip",
        "random_rotation": "kdengine.data.transforms:random_rotation",
        "random_erasing": "kdengine.data.transforms:random_erasing",
        "resize": "kdengine.data.transforms:resize",
        "center_crop": "kdengine.data.transforms:center_crop",
        "color_jitter": "kdengine.data.transforms:color_jitter",
        "auto_augment": "kdengine.data.transforms:auto_augment",
        "mixup": "kdengine.data.mixing:MixUp",
        "cutmix": "kdengine.data.mixing:CutMix",
    }
