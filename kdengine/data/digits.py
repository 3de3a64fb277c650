"""Handwritten digits that come with scikit-learn: no download, a fit takes seconds."""

from __future__ import annotations

import torch

from kdengine.api import ConfigurationError
from kdengine.data.dataset import InMemory, Split, check_split


def digits(split: Split, test_share: float = 0.3) -> InMemory:
    """The 1,797 digits of scikit-learn's ``load_digits``: ``(1, 8, 8)`` float32 from 0 to 1, ten classes.

    The split is stratified by class and always the same for one ``test_share``: with 0.3, 1,257 images to train on and
    540 to test on. There is no seed to choose, so that results compare.

    Args:
        split: ``"train"`` or ``"test"``.
        test_share: share of the images in the test set.

    Returns:
        the data set, in memory.

    Raises:
        ConfigurationError: an unknown split, a share that leaves a set empty, or scikit-learn is missing.
    """
    check_split(split)
    if not 0.0 < test_share < 1.0:
        raise ConfigurationError(f"expected test_share between 0 and 1, got {test_share}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigurationError("data set 'digits' needs scikit-learn: pip install 'kdengine[demo]'") from error
    data = load_digits()
    train, test = train_test_split(range(len(data.target)), test_size=test_share, stratify=data.target, random_state=0)
    chosen = torch.tensor(sorted(train if split == "train" else test))
    inputs = torch.from_numpy(data.images).float().div(16.0).unsqueeze(1)  # (N, 1, 8, 8)
    labels = torch.from_numpy(data.target).long()
    return InMemory(inputs[chosen], labels[chosen], [str(digit) for digit in range(10)])
