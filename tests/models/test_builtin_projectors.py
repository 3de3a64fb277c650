"""Projectors between features."""

import pytest
import torch
from torch import nn

from kdengine.api import ConfigurationError
from kdengine.projectors.projectors import Conv1x1, Linear, auto


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((8,), (16,), Linear),
        ((5, 8), (5, 16), Linear),
        ((8, 4, 4), (16, 4, 4), Conv1x1),
        ((8, 4, 6), (16, 7, 3), Conv1x1),
        ((8, 4, 4), (8, 2, 2), Conv1x1),
        ((8, 4, 4), (8, 4, 4), nn.Identity),
    ],
)
def test_auto_maps_one_shape_to_the_other(student, teacher, kind):
    projector = auto(student, teacher)
    assert type(projector) is kind
    assert projector(torch.randn(3, *student)).shape == (3, *teacher)


def test_conv1x1_is_a_linear_map_per_pixel():
    projector, feature = Conv1x1((3, 4, 4), (5, 4, 4)), torch.randn(2, 3, 4, 4)
    expected = torch.einsum("oc,bchw->bohw", projector.conv.weight[..., 0, 0], feature)
    torch.testing.assert_close(projector(feature), expected + projector.conv.bias.view(-1, 1, 1))


@pytest.mark.parametrize("factory", [auto, Linear, Conv1x1])
@pytest.mark.parametrize(("student", "teacher"), [((4, 8), (5, 8)), ((8,), (8, 4, 4)), ((5, 8), (8,))])
def test_shapes_that_do_not_fit_are_named(factory, student, teacher):
    with pytest.raises(ConfigurationError) as caught:
        factory(student, teacher)
    for shape in (student, teacher):
        assert f"({', '.join(['B', *map(str, shape)])})" in str(caught.value)
