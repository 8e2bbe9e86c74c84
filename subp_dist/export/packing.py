"""Kept blocks of a uniform block sparse weight as a mask of the dense one, and the way back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from subp_ext import UniformBlockSparse


def kept_blocks(weight: UniformBlockSparse) -> np.ndarray:
    """``[R, I / groups]`` bool, the blocks that are kept."""
    kept = np.zeros((len(weight.indices), weight.shape[1]), bool)
    np.put_along_axis(kept, weight.indices.astype(np.int64), True, axis=1)
    return kept


def dense_mask(weight: UniformBlockSparse) -> np.ndarray:
    """``[O, I / groups, 1, 1]`` float32, 1 where an output channel reads an input channel."""
    per_group, rows = weight.shape[0] // weight.groups, len(weight.indices) // weight.groups
    place = np.arange(weight.shape[0]) if weight.order is None else np.argsort(weight.order)
    row = place // per_group * rows + place % per_group // weight.block_size
    return kept_blocks(weight)[row][:, :, None, None].astype(np.float32)


def packed(dense: np.ndarray, like: UniformBlockSparse) -> UniformBlockSparse:
    """A dense float32 weight with the kept blocks, and the order of rows, of another."""
    ordered = dense if like.order is None else dense[like.order]
    found = UniformBlockSparse.from_dense(ordered, like.block_size, like.groups, kept_blocks(like))
    return replace(found, order=like.order)
