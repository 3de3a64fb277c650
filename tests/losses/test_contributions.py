"""What holds for every builtin loss."""

import pytest

from kdengine.cli.describe import references
from kdengine.losses import kdengine_losses


@pytest.mark.parametrize("loss", kdengine_losses().values(), ids=lambda loss: loss.__name__)
def test_every_loss_names_its_source(loss):
    assert references(loss)
    for paper in references(loss):
        assert any(f" {year}" in paper for year in range(1951, 2027))
