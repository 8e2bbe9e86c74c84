"""Weights as 1xN blocks.

A *block* is N output channels x one input channel x the whole kernel; the channels are consecutive, unless an order
``[O]`` (see ``regroup``) says which channel is at each position of the block rows. A *block row* is the N output
channels; it holds one block per input channel. Block rows live inside the groups of a grouped convolution, so R =
groups * ceil(O / groups / N), and the last row of a group is narrower than N where N does not divide O / groups.

Shapes used everywhere in this package: weight ``[O, I, kh, kw]`` (``[O, I]`` for a linear layer) with I the input
channels *per group*; blocks ``[R, I, N * kh * kw]``; mask ``[R, I]``, True where the block is kept.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SIZES = (2, 4, 8, 16, 32, 64)


def num_block_rows(out_channels: int, block_size: int, groups: int = 1) -> int:
    """Number of block rows R of a layer."""
    return groups * -(-(out_channels // groups) // block_size)


def row_of_channel(
    out_channels: int,
    block_size: int,
    groups: int = 1,
    device: torch.device | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """The block row that owns each output channel: ``[O]`` int64."""
    position = torch.arange(out_channels, device=device) if order is None else order.argsort()
    per_group = out_channels // groups
    return position // per_group * num_block_rows(per_group, block_size) + position % per_group // block_size


def to_blocks(weight: Tensor, block_size: int, groups: int = 1, order: Tensor | None = None) -> Tensor:
    """Blocks ``[R, I, N * kh * kw]`` of a weight ``[O, I, kh, kw]``; narrow last rows are padded with zeros."""
    weight = weight if order is None else weight[order]
    out_channels, in_channels = weight.shape[:2]
    per_group = out_channels // groups
    rows = num_block_rows(per_group, block_size)
    grouped = weight.reshape(groups, per_group, in_channels, -1)
    padded = F.pad(grouped, (0, 0, 0, 0, 0, rows * block_size - per_group))
    return padded.reshape(groups * rows, block_size, in_channels, -1).transpose(1, 2).flatten(2)


def apply_mask(weight: Tensor, mask: Tensor, block_size: int, groups: int = 1, order: Tensor | None = None) -> Tensor:
    """The weight with every block that the mask drops set to zero; same shape and memory format."""
    out_channels, in_channels, *kernel = weight.shape
    ones = (1,) * len(kernel)
    if order is None and out_channels // groups % block_size == 0:
        # A view by rows lets the mask broadcast; it is never expanded to the size of the weight.
        if math.prod(kernel) > 1 and weight.is_contiguous():
            # Repeated over the kernel it broadcasts along long rows, which takes half the time of runs of 9.
            by_row = weight.view(mask.shape[0], block_size, -1)
            return torch.where(mask.repeat_interleave(math.prod(kernel), 1).unsqueeze(1), by_row, 0.0).view_as(weight)
        by_row = weight.unflatten(0, (-1, block_size))
        return torch.where(mask.view(-1, 1, in_channels, *ones), by_row, 0.0).flatten(0, 1)
    by_channel = mask[row_of_channel(out_channels, block_size, groups, mask.device, order)]
    return torch.where(by_channel.view(out_channels, in_channels, *ones), weight, 0.0)


def add_pruned_part(
    target: Tensor,
    weight: Tensor,
    mask: Tensor,
    block_size: int,
    groups: int,
    factor: float,
    order: Tensor | None = None,
) -> None:
    """``target += factor * weight`` in every block that the mask drops; in place, one pass, nothing weight-sized made.

    Args:
        target: same shape as ``weight`` ``[O, I, kh, kw]``.
    """
    pruned = torch.logical_not(mask, out=torch.empty_like(mask, dtype=weight.dtype))
    ones = (1,) * (weight.ndim - 2)
    if order is None and weight.shape[0] // groups % block_size == 0:
        shape = (-1, 1, weight.shape[1], *ones)
        target, weight = (tensor.unflatten(0, (-1, block_size)) for tensor in (target, weight))
    else:
        shape = (*weight.shape[:2], *ones)
        pruned = pruned[row_of_channel(weight.shape[0], block_size, groups, mask.device, order)]
    target.addcmul_(weight, pruned.view(shape), value=factor)
