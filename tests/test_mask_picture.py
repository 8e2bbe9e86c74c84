"""A mask as a picture: every block where it belongs, large enough to see, whatever the shape; what the legend says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from subp_dist.layer_report import LayerReport
from subp_dist.mask_picture import KEPT, PRUNED, block_pixels, draw_mask


def mask_and_layer(rows: int, channels: int) -> tuple[torch.Tensor, LayerReport]:
    order = torch.rand(rows, channels, generator=torch.Generator().manual_seed(0)).argsort(1)
    mask = order < channels - channels // 2
    return mask, LayerReport(
        "layer.conv", "convolution", 100, None, (16 * rows, channels, 3, 3), 1, 16, rows, 0.5, int(mask.sum())
    )


@pytest.mark.parametrize("shape", [(4, 64), (1, 3), (32, 512), (2, 1), (128, 2048)], ids=str)
def test_every_block_has_its_colour_in_a_frame(shape):
    mask, layer = mask_and_layer(*shape)
    picture, (height, width) = draw_mask(mask, layer), block_pixels(*shape)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    # The frame is the lowest dark line, and the mask is inside of it; lines between blocks take the last pixel of each.
    bottom = np.flatnonzero((picture[:, 12] == (40, 40, 40)).all(1))[-1]
    inside = picture[bottom - shape[0] * height : bottom, 13 : 13 + shape[1] * width]
    found = inside[::height, ::width]
    assert np.array_equal((found == KEPT).all(2), mask.numpy()) and np.array_equal(
        (found == PRUNED).all(2), ~mask.numpy()
    )
    large = inside.reshape(shape[0], height, shape[1], width, 3)[:, : height - 1 or 1, :, : width - 1 or 1]
    assert (large == large[:, :1, :, :1]).all()


def test_a_strip_of_four_rows_becomes_a_picture():
    height, width, _ = draw_mask(*mask_and_layer(4, 64)).shape
    assert height >= 200 and width >= 700


def test_large_masks_stay_small_enough():
    assert draw_mask(*mask_and_layer(128, 2048)).size < 3e6


def test_the_legend_says_which_layer_and_how_much_it_keeps():
    mask, layer = mask_and_layer(4, 64)
    pictures = [draw_mask(mask, replace(layer, **other))[:60] for other in ({}, {}, {"name": "b"}, {"kept_blocks": 4})]
    assert np.array_equal(pictures[0], pictures[1])
    assert not any(np.array_equal(pictures[0][:, :480], other[:, :480]) for other in pictures[2:])
