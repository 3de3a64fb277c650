"""Projectors between features, and the one that fits."""

import pytest
import torch
from torch import nn

from kdengine.api import ConfigurationError
from kdengine.projectors.projectors import MLP, Conv1x1, Linear, auto
from kdengine.projectors.tokens import Resize, TokenRow, Tokens


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((8,), (16,), Linear),
        ((5, 8), (5, 16), Linear),
        ((8, 4, 4), (16, 4, 4), Conv1x1),
        ((8, 4, 6), (16, 7, 3), Conv1x1),
        ((8, 4, 4), (8, 2, 2), Conv1x1),
        ((8, 4, 4), (8, 4, 4), nn.Identity),
        ((7, 7, 8), (7, 7, 8), nn.Identity),
        ((4, 8), (5, 8), Tokens),
        ((3, 8), (8, 6), Tokens),
        ((8, 4, 6), (24, 12), Tokens),
        ((17, 8), (6, 4, 4), Tokens),
    ],
)
def test_auto_maps_one_shape_to_the_other(student, teacher, kind):
    projector = auto(student, teacher)
    assert type(projector) is kind
    for items in (0, 3):
        assert projector(torch.randn(items, *student)).shape == (items, *teacher)


def test_conv1x1_is_a_linear_map_per_pixel():
    projector, feature = Conv1x1((3, 4, 4), (5, 4, 4)), torch.randn(2, 3, 4, 4)
    expected = torch.einsum("oc,bchw->bohw", projector.conv.weight[..., 0, 0], feature)
    torch.testing.assert_close(projector(feature), expected + projector.conv.bias.view(-1, 1, 1))


@pytest.mark.parametrize("kind", [Linear, MLP])
def test_linear_and_mlp_map_the_last_dimension_whatever_is_before_it(kind):
    projector, feature = kind((4, 5, 3), (4, 5, 7)), torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(projector(feature)[1, 2, 3], projector(feature[1, 2, 3]))


def test_mlp_is_not_linear():
    projector, feature = MLP((3,), (4,)).double(), torch.randn(5, 3, dtype=torch.float64)
    origin = projector(torch.zeros_like(feature))
    assert not torch.allclose(projector(2 * feature) - origin, 2 * (projector(feature) - origin))


@pytest.mark.parametrize("factory", [auto, Linear, MLP, Conv1x1, Tokens, TokenRow, Resize])
@pytest.mark.parametrize(("student", "teacher"), [((8,), (8, 4, 4)), ((5, 8), (8,)), ((2, 3, 4, 4), (2, 3, 5, 5))])
def test_shapes_that_do_not_fit_are_named(factory, student, teacher):
    with pytest.raises(ConfigurationError) as caught:
        factory(student, teacher)
    for shape in (student, teacher):
        assert f"({', '.join(['B', *map(str, shape)])})" in str(caught.value)


@pytest.mark.parametrize(("student", "teacher"), [((7, 7, 96), (7, 7, 128)), ((16, 7, 7), (14, 14, 96))])
def test_auto_does_not_guess_where_maps_look_channels_last(student, teacher):
    with pytest.raises(ConfigurationError, match=r"channels last.*'conv1x1' if it is one, 'linear' for channels-last"):
        auto(student, teacher)
