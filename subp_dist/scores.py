"""Importance scores of 1xN blocks: ``l1``, ``l2`` and ``bpar`` (block pruning by angular redundancy).

A criterion maps blocks ``[R, I, D]`` to scores ``[R, I]``; the lowest scores of each row are pruned first. Blocks that
are all zero, as masked ones are, score lowest under every criterion. Source: arXiv 2310.06218, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Elements of the cosine matrix that are held at once. Smaller tiles fit the cache better, but each one costs a parallel
# region of its own, which is slow where other processes use the cores; a GPU wants launches that are large enough.
_TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 24}


def l1(blocks: Tensor, alpha: float = 1.0) -> Tensor:
    """Sum of magnitudes of each block; ``alpha`` is not used."""
    return blocks.abs().sum(-1).double()


def l2(blocks: Tensor, alpha: float = 1.0) -> Tensor:
    """Euclidean norm of each block; ``alpha`` is not used."""
    return torch.linalg.vector_norm(blocks, dim=-1).double()


def bpar(blocks: Tensor, alpha: float = 1.0) -> Tensor:
    """Share of the row's magnitude minus ``alpha`` times the share of its angular redundancy.

    ``l_j - alpha * a_j`` with ``l_j = |b_j|_1 / sum |b_i|_1`` and ``a_j = c_j / sum c_i``, where
    ``c_j = sum_i |cos(b_j, b_i)|`` includes ``i = j``. A zero block is orthogonal to all, itself included, and gets
    ``a_j = 1``.
    """
    magnitude = l1(blocks)
    magnitude_share = magnitude / magnitude.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    redundancy = absolute_cosine_sums(blocks).double()
    redundancy_share = redundancy / redundancy.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return magnitude_share - alpha * torch.where(redundancy == 0, 1.0, redundancy_share)


def absolute_cosine_sums(blocks: Tensor) -> Tensor:
    """``sum_i |cos(b_j, b_i)|`` over the blocks of each row: ``[R, I]``, 0 for a zero block.

    The cosine matrix ``[R, I, I]`` of a wide layer takes gigabytes, so it is made and summed tile by tile.
    """
    rows, channels, _ = blocks.shape
    norms = torch.linalg.vector_norm(blocks, dim=-1, keepdim=True)
    directions = torch.where(norms > 0, blocks / norms, 0.0)
    transposed = directions.mT.contiguous()
    sums = torch.empty(rows, channels, dtype=blocks.dtype, device=blocks.device)
    budget = _TILE_ELEMENTS.get(blocks.device.type, _TILE_ELEMENTS["cuda"])
    tile_channels = min(channels, max(1, budget // channels))
    tile_rows = max(1, budget // (tile_channels * channels))
    for row in range(0, rows, tile_rows):
        row_slice = slice(row, row + tile_rows)
        for channel in range(0, channels, tile_channels):
            channel_slice = slice(channel, channel + tile_channels)
            cosines = torch.bmm(directions[row_slice, channel_slice], transposed[row_slice])
            torch.sum(cosines.abs_(), -1, out=sums[row_slice, channel_slice])
    return sums


CRITERIA: dict[str, Callable[[Tensor, float], Tensor]] = {"l1": l1, "l2": l2, "bpar": bpar}

# Not a function of the weights: the pruner draws such scores once per layer. It is the control of the others.
RANDOM = "random"
