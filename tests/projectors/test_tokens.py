"""Projectors between other numbers of positions."""

import pytest
import torch
from torch.nn import functional as F

from kdengine.api import ConfigurationError
from kdengine.projectors.tokens import Resize, TokenRow, Tokens


def tokens_of(feature_map):
    """(B, C, H, W) as (B, H * W, C), row by row."""
    batch, channels, height, width = feature_map.shape
    return torch.stack([feature_map[:, :, y, x] for y in range(height) for x in range(width)], dim=1).view(
        batch, height * width, channels
    )


def test_resize_interpolates_a_map():
    feature = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(Resize((3, 4, 6), (3, 8, 3))(feature), F.interpolate(feature, (8, 3), mode="bilinear"))


def test_square_grids_of_tokens_are_interpolated_in_two_dimensions():
    feature_map = torch.randn(2, 3, 4, 4)
    expected = tokens_of(F.interpolate(feature_map, (6, 6), mode="bilinear"))
    torch.testing.assert_close(Resize((16, 3), (36, 3))(tokens_of(feature_map)), expected)


def test_other_numbers_of_tokens_are_interpolated_along_the_row():
    feature = torch.randn(2, 7, 3)
    expected = F.interpolate(feature.mT, 16, mode="linear").mT
    torch.testing.assert_close(Resize((7, 3), (16, 3))(feature), expected)
    row = TokenRow((9, 3), (16, 3))
    squares = torch.randn(2, 9, 3)
    torch.testing.assert_close(row(squares), F.interpolate(row.linear(squares).mT, 16, mode="linear").mT)


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_tokens_before_the_grid_are_kept_left_out_or_the_mean_of_the_grid(before, after):
    feature = torch.randn(2, before + 16, 3)
    extra, grid = feature[:, :before], feature[:, before:]
    resized = Resize((before + 16, 3), (after + 4, 3))(feature)
    mean = grid.mean(1, keepdim=True)
    expected = [extra[:, at : at + 1] if at < before else mean for at in range(after)]
    for at, token in enumerate(expected):
        torch.testing.assert_close(resized[:, at : at + 1], token)
    plane = grid.mT.reshape(2, 3, 4, 4)
    torch.testing.assert_close(resized[:, after:], tokens_of(F.interpolate(plane, (2, 2), mode="bilinear")))


def test_a_map_becomes_tokens_row_by_row_and_tokens_a_map():
    feature_map = torch.randn(2, 3, 4, 6)
    there = Tokens((3, 4, 6), (24, 5))
    torch.testing.assert_close(there(feature_map), there.linear(tokens_of(feature_map)))
    back = Tokens((25, 3), (5, 4, 6))
    tokens = torch.cat([torch.randn(2, 1, 3), tokens_of(feature_map)], dim=1)
    torch.testing.assert_close(tokens_of(back(tokens)), back.linear(tokens_of(feature_map)))


def test_a_linear_map_per_position_commutes_with_the_interpolation():
    projector, feature = Tokens((17, 3), (50, 5)), torch.randn(2, 17, 3)
    torch.testing.assert_close(projector(feature), projector.linear(Resize((17, 3), (50, 3))(feature)))


def test_what_cannot_be_resized_is_named():
    with pytest.raises(ConfigurationError, match=r"one width C; got a student feature \(B, 4, 8\) .* \(B, 9, 6\)"):
        Resize((4, 8), (9, 6))
    with pytest.raises(ConfigurationError, match=r"\(B, 3, 4, 4\) and the teacher's \(B, 13, 5\).*are no grid"):
        Tokens((3, 4, 4), (13, 5))
