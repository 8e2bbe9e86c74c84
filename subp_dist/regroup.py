"""Which output channels share a block row: orders of channels that keep more of a weight than consecutive ones do.

Blocks of channels that need the same inputs lose less when the rest is pruned. So the channels of each group of a
convolution are clustered into rows of N, by balanced k-means on their importance for each input; then channels and kept
blocks are chosen in turns; then pairs of channels change places. None of it is trained, and all of it is bounded work.

Shapes: importance ``[O, I]`` of each output channel for each input channel; order ``[O]`` int64, the output channel at
each position of the block rows, one row after the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

_CLUSTER_STEPS, _ALTERNATE_STEPS, _SWAP_PASSES = 8, 12, 2
_PARTNERS = 4  # rows that each row tries to exchange channels with in a pass
_SWAP_WORK = 1 << 28  # sums of blocks that a group of a layer may try in a pass
_GAIN = 1e-5  # relative; less is rounding


@dataclass(frozen=True)
class Regrouping:
    """An order of a layer's output channels, and the share of squared weights that it keeps.

    Attributes:
        order: ``[O]`` int64.
        before: share kept, in [0, 1], where rows are consecutive channels.
        after: share kept in this order; never less.
    """

    order: Ints
    before: float
    after: float


def regroup(weight: Floats, kept: int, block_size: int, groups: int, seed: int) -> Regrouping:
    """Find the order of a weight's output channels in which the kept blocks hold the most of its squares.

    Args:
        weight: ``[O, I, kh, kw]`` with I the input channels per group.
        kept: blocks that each row will keep, at least 1.
        block_size: N.
        groups: of the convolution; a channel stays in its group.
        seed: of the first clusters; the same seed gives the same order.

    Returns:
        The order, or the consecutive one where none was found that keeps more.
    """
    importance = np.square(weight.astype(np.float32)).reshape(*weight.shape[:2], -1).sum(-1)
    parts = np.split(importance, groups)
    orders = [
        _order_of_group(part, kept, block_size, np.random.default_rng([seed, at])) for at, part in enumerate(parts)
    ]
    per_group = len(parts[0])
    order = np.concatenate([own + at * per_group for at, own in enumerate(orders)])
    consecutive = np.arange(len(weight))
    before = kept_share(importance, consecutive, kept, block_size, groups)
    after = kept_share(importance, order, kept, block_size, groups)
    return Regrouping(order, before, after) if after > before else Regrouping(consecutive, before, before)


def kept_share(importance: Floats, order: Ints, kept: int, block_size: int, groups: int) -> float:
    """The share of all importance in the ``kept`` best blocks of each row; 1 where there is none at all."""
    per_group = len(importance) // groups
    row = _rows(per_group, block_size)
    ordered = importance[order].astype(np.float64)
    best = sum(_best(_sums(part, row), kept).sum() for part in np.split(ordered, groups))
    total = ordered.sum()
    return float(best / total) if total > 0 else 1.0


def _order_of_group(importance: Floats, kept: int, block_size: int, random: np.random.Generator) -> Ints:
    """The better of two orders of the channels of one group: the one found, and the consecutive one."""
    row = _rows(len(importance), block_size)
    consecutive = np.arange(len(importance))
    if row[-1] == 0 or kept == importance.shape[1]:
        return consecutive
    found = _alternate(importance, _cluster(importance, row, random), row, kept)
    found = _swap(importance, found, kept, random)
    return _order(found) if _total(importance, found, kept) > _total(importance, row, kept) else consecutive


def _rows(channels: int, block_size: int) -> Ints:
    """The row of each position."""
    return np.arange(channels) // block_size


def _order(row: Ints) -> Ints:
    """Channels by their rows, ascending in each; rows by their first channel, but for a narrow last one."""
    size, firsts = np.bincount(row), np.full(row.max() + 1, len(row))
    np.minimum.at(firsts, row, np.arange(len(row)))
    if size[-1] < size[0]:
        firsts[-1] = len(row)
    return np.lexsort((np.arange(len(row)), firsts[row]))


def _sums(importance: Floats, row: Ints) -> Floats:
    """Importance of each block: ``[R, I]``."""
    sums = np.zeros((row.max() + 1, importance.shape[1]), importance.dtype)
    np.add.at(sums, row, importance)
    return sums


def _best(sums: Floats, kept: int) -> Floats:
    """The largest values along the last axis, in any order."""
    return sums if kept == sums.shape[-1] else np.partition(sums, sums.shape[-1] - kept, axis=-1)[..., -kept:]


def _total(importance: Floats, row: Ints, kept: int) -> float:
    return float(_best(_sums(importance, row), kept).sum(dtype=np.float64))


def _masks(sums: Floats, kept: int) -> Floats:
    """1 for the best blocks of each row, else 0."""
    masks = np.zeros_like(sums)
    np.put_along_axis(masks, np.argsort(-sums, axis=1, kind="stable")[:, :kept], 1, axis=1)
    return masks


def _assign(gain: Floats, row: Ints) -> Ints:
    """Rows of the channels, as many in each as ``row`` has, that maximise the sum of ``gain`` ``[O, R]``."""
    channels, positions = linear_sum_assignment(gain[:, row], maximize=True)
    assigned = np.empty_like(row)
    assigned[channels] = row[positions]
    return assigned


def _cluster(importance: Floats, row: Ints, random: np.random.Generator) -> Ints:
    """Balanced k-means of the directions of the channels' norms."""
    norms = np.sqrt(importance)
    norms /= np.maximum(np.linalg.norm(norms, axis=1, keepdims=True), np.finfo(norms.dtype).tiny)
    centres = _spread(norms, int(row[-1]) + 1, random)
    found = None
    for _ in range(_CLUSTER_STEPS):
        new = _assign(2 * norms @ centres.T - np.square(centres).sum(1), row)
        if found is not None and np.array_equal(new, found):
            break
        found = new
        centres = _sums(norms, found) / np.bincount(found)[:, None].astype(norms.dtype)
    assert found is not None
    return found


def _spread(points: Floats, count: int, random: np.random.Generator) -> Floats:
    """First centres as k-means++ draws them: a point is likelier the farther it is from those drawn before."""
    chosen = [int(random.integers(len(points)))]
    distances = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distances = np.minimum(distances, np.square(points - points[chosen[-1]]).sum(1, dtype=np.float64))
        total = distances.sum()
        chosen.append(int(random.choice(len(points), p=distances / total if total > 0 else None)))
    return points[chosen]


def _alternate(importance: Floats, found: Ints, row: Ints, kept: int) -> Ints:
    """Channels to the rows that keep most of them, kept blocks by the channels of their row, in turns."""
    best = _total(importance, found, kept)
    for _ in range(_ALTERNATE_STEPS):
        new = _assign(importance @ _masks(_sums(importance, found), kept).T, row)
        total = _total(importance, new, kept)
        if total <= best * (1 + _GAIN):
            break
        found, best = new, total
    return found


def _swap(importance: Floats, row: Ints, kept: int, random: np.random.Generator) -> Ints:
    """Exchanges of a channel of one row for a channel of another, the best of each pair of rows where it gains."""
    row = row.copy()
    rows = int(row.max()) + 1
    all_pairs = np.stack(np.triu_indices(rows, 1), 1)
    work = int(np.bincount(row).max()) ** 2 * importance.shape[1]
    count = min(len(all_pairs), _PARTNERS * rows, max(rows, _SWAP_WORK // work))
    for _ in range(_SWAP_PASSES):
        pairs = all_pairs[np.sort(random.choice(len(all_pairs), count, replace=False))]
        if not sum(_swap_best(importance, row, first, second, kept) for first, second in pairs):
            break
    return row


def _swap_best(importance: Floats, row: Ints, first: int, second: int, kept: int) -> bool:
    """Make the exchange between two rows that gains the most, in place; whether there is one."""
    ours, theirs = np.flatnonzero(row == first), np.flatnonzero(row == second)
    a, b = importance[ours], importance[theirs]
    sums_a, sums_b = a.sum(0), b.sum(0)
    difference = b[None] - a[:, None]
    totals = _best(sums_a + difference, kept).sum(-1) + _best(sums_b - difference, kept).sum(-1)
    i, j = np.unravel_index(totals.argmax(), totals.shape)
    if totals[i, j] <= (_best(sums_a, kept).sum() + _best(sums_b, kept).sum()) * (1 + _GAIN):
        return False
    row[ours[i]], row[theirs[j]] = second, first
    return True
