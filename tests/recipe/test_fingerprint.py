"""What a trained teacher's cache knows a data set by."""

import numpy as np
import torch

from kdengine.recipe.fingerprint import fingerprint


class Noisy(torch.utils.data.Dataset):
    """Draws from a generator of its own, so that no item is the same twice."""

    def __init__(self, targets):
        self.rng = np.random.default_rng()
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.tensor(self.rng.standard_normal(3)), self.targets[index]


class Seeded(Noisy):
    """Draws from torch's generator, which is seeded for each item."""

    def __init__(self, targets, scale=1.0):
        super().__init__(targets)
        self.scale = scale

    def __getitem__(self, index):
        return self.scale * torch.randn(3), self.targets[index]


def test_a_data_set_whose_items_never_stay_is_found_again_by_its_targets():
    assert fingerprint(Noisy([0, 1, 2])) == fingerprint(Noisy([0, 1, 2]))
    assert fingerprint(Noisy([0, 1, 2])) != fingerprint(Noisy([0, 1, 1]))


def test_changed_items_are_another_content():
    assert fingerprint(Seeded([0, 1])) == fingerprint(Seeded([0, 1]))
    assert fingerprint(Seeded([0, 1])) != fingerprint(Seeded([0, 1], scale=2.0))
