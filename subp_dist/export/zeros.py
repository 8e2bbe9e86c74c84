"""Zeros in weights that no mask of ours tells of: found in blocks of 1xN, and kept as block rows of one length."""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import torch
from torch import Tensor

from subp_ext import Graph, Node, Ref
from subp_ext.transposed import as_convolution

# By the weight's name: mask [R, I / groups], block size, and the order [O] of the channels if it is not consecutive.
Masks = dict[str, tuple[Tensor, int, Tensor | None]]

# Operators that run block-sparse weights.
SPARSE_OPERATORS = ("conv2d", "conv_transpose2d", "linear")

# Blocks longer than this share nothing that two shorter ones do not.
MAX_BLOCK_SIZE = 64

# Of a dense layer's time. Kernels compute up to 8 output channels together; fewer read every input more often.
_PAYS = 0.95
_COST_OF_TILE = {8: 1.0, 4: 1.2, 2: 1.7, 1: 2.7}


def zeros_found(graph: Graph, known: Container[str]) -> Masks:
    """Masks ``[R, I / groups]`` of all convolutions, transposed or not, and linear layers whose zeros pay.

    A row with fewer blocks than the longest of its layer keeps blocks of zeros, too, to have as many. The channels of a
    row are consecutive, or, of a convolution where that takes less time, such as have their zeros in the same places.

    Args:
        graph: with weights as they were trained.
        known: names of weights that have a mask.
    """
    masks: Masks = {}
    for node in graph.nodes:
        name, groups = _weight_of(node), node.args.get("groups", 1)
        weight = graph.constants.get(name)
        if name in known or not isinstance(weight, np.ndarray) or weight.ndim not in (2, 4):
            continue
        weight = in_output_rows(weight, node.op, groups)
        kept = weight.reshape(*weight.shape[:2], -1).any(2)
        orders = [None] if node.op != "conv2d" else [None, _by_zeros(kept, groups)]
        if (found := _best(kept, groups, orders)) is not None:
            masks[name] = found
    return masks


def _weight_of(node: Node) -> str | None:
    weight = node.args.get("weight")
    return weight.name if node.op in SPARSE_OPERATORS and isinstance(weight, Ref) else None


def in_output_rows(weight: np.ndarray, op: str, groups: int) -> np.ndarray:
    """A weight with its output channels first, ``[O, I / groups, ...]``, as all but transposed convolutions have it."""
    return as_convolution(weight, groups) if op == "conv_transpose2d" else weight


def _by_zeros(kept: np.ndarray, groups: int) -> np.ndarray:
    """The order [O] with channels of equal rows of ``kept`` [O, I / groups] side by side, within groups.

    Rows that most channels have come first: the last block row of a group is the one that may be narrower.
    """
    per_group, orders = len(kept) // groups, []
    for first in range(0, len(kept), per_group):
        _, at, which, count = np.unique(kept[first : first + per_group], True, True, True, axis=0)
        which = which.reshape(-1)  # NumPy 2.0 has another shape
        orders.append(first + np.lexsort((at[which], -count[which])))
    return np.concatenate(orders)


def _best(kept: np.ndarray, groups: int, orders: list[np.ndarray | None]) -> tuple[Tensor, int, Tensor | None] | None:
    """The mask, block size and order that take the least time, the first that do; None if a dense layer is as fast.

    Args:
        kept: [O, I / groups] where a kernel is not all zeros.
        groups: of the convolution.
        orders: of the output channels, [O] each; None for consecutive ones.
    """
    outputs, channels = kept.shape
    if kept.all() or channels == 1:
        return None
    best, found = _PAYS, None
    for order in orders:
        ordered = kept if order is None else kept[order]
        for block_size in range(min(MAX_BLOCK_SIZE, outputs // groups), 0, -1):
            rows = _in_rows(ordered, block_size, groups)
            longest = max(1, int(rows.sum(1).max()))
            time = longest / channels * len(rows) * block_size / outputs * _cost(block_size)
            if time < best:
                mask = torch.from_numpy(_padded(rows, longest))
                best, found = time, (mask, block_size, None if order is None else torch.from_numpy(order))
    return found


def _cost(block_size: int) -> float:
    """Of an output channel, relative to one among eight."""
    total, rest = 0.0, block_size
    for tile, cost in _COST_OF_TILE.items():
        total, rest = total + rest // tile * tile * cost, rest % tile
    return total / block_size


def _in_rows(kept: np.ndarray, block_size: int, groups: int) -> np.ndarray:
    """[R, I / groups] where a block is not all zeros; block rows lie within groups."""
    outputs, channels = kept.shape
    per_group = outputs // groups
    rows = -(-per_group // block_size)
    padded = np.zeros((groups, rows * block_size, channels), bool)
    padded[:, :per_group] = kept.reshape(groups, per_group, channels)
    return padded.reshape(groups * rows, block_size, channels).any(1)


def _padded(rows: np.ndarray, longest: int) -> np.ndarray:
    """The rows with blocks of zeros added, the first there are, up to the longest."""
    missing = longest - rows.sum(1, keepdims=True)
    return rows | (~rows & (np.cumsum(~rows, 1) <= missing))
