"""Oracle: soft uniform block pruning (method.md) in float64 NumPy and plain loops, to check the product against.

It was written from the specification alone, shares no code with the package, imports neither the package nor torch,
and prefers the form closest to the method's text over speed. Sizes are meant to be small.

Shapes: weight [O, I, kh, kw], where I is the input channels *per group* (PyTorch's layout: in_channels / groups);
R = groups * ceil((O / groups) / N) block rows; mask and scores [R, I], one entry per block.
Out of scope: the random draw itself (only its exact distribution is here), autograd, weight standardisation.
"""

import math

import numpy as np


def block_rows(out_channels: int, groups: int, block_size: int) -> list[tuple[int, int]]:
    """(first output channel, last exclusive) of every block row; rows live inside a group, its last may be narrower."""
    if out_channels % groups:
        raise ValueError(f"{out_channels} output channels do not divide into {groups} groups")
    per_group = out_channels // groups
    rows = []
    for group in range(groups):
        first, last = group * per_group, (group + 1) * per_group
        while first < last:
            rows.append((first, min(first + block_size, last)))
            first += block_size
    return rows


def blocks(weight: np.ndarray, block_size: int, groups: int) -> list[np.ndarray]:
    """Per block row, its blocks [I, n*kh*kw]: n output channels x one input channel x the whole kernel, n unpadded."""
    weight = np.asarray(weight, dtype=np.float64)
    out_channels, in_channels = weight.shape[:2]
    rows = []
    for first, last in block_rows(out_channels, groups, block_size):
        rows.append(np.stack([weight[first:last, j].ravel() for j in range(in_channels)]))
    return rows


def scores(weight: np.ndarray, block_size: int, groups: int, criterion: str, alpha: float = 1.0) -> np.ndarray:
    """Score of every block, float64 [R, I]; the lowest are pruned.

    `weight` is what is to be scored: the masked weights (masked blocks are zeros) or, as an option, the latent ones.
    """
    rows = blocks(weight, block_size, groups)
    if criterion == "l1":
        return np.stack([np.abs(b).sum(axis=1) for b in rows])
    if criterion == "l2":
        return np.stack([np.sqrt((b * b).sum(axis=1)) for b in rows])
    if criterion == "bpar":
        return np.stack([_bpar(b, alpha) for b in rows])
    raise ValueError(f"unknown criterion {criterion!r}")


def _bpar(b: np.ndarray, alpha: float) -> np.ndarray:
    """Block pruning by angular redundancy of one block row, [I, D] -> [I].

    l_j = |b_j|_1 / sum_i |b_i|_1,  c_j = sum_i |cos(b_j, b_i)|,  a_j = c_j / sum_i c_i,  S_j = l_j - alpha * a_j.
    A masked or zero block is orthogonal to all, itself included, so its c_j is 0; a_j := 1 where it came out 0.
    A row of nothing but zeros has l = 0 and a = 1: every block scores -alpha.
    """
    in_channels = len(b)
    l1 = np.abs(b).sum(axis=1)
    norm = np.sqrt((b * b).sum(axis=1))
    c = np.zeros(in_channels)
    for j in range(in_channels):
        for i in range(in_channels):
            if norm[j] > 0 and norm[i] > 0:
                c[j] += abs(np.dot(b[j], b[i])) / (norm[j] * norm[i])
    length = l1 / l1.sum() if l1.sum() > 0 else np.zeros(in_channels)
    angle = c / c.sum() if c.sum() > 0 else np.zeros(in_channels)
    angle[angle == 0] = 1.0
    return length - alpha * angle


def candidate_count(rate: float, in_channels: int) -> int:
    """P = floor(p * I), at most I - 1: at least one block per row always stays."""
    return min(math.floor(rate * in_channels), in_channels - 1)


def candidates(scores: np.ndarray, rate: float) -> np.ndarray:
    """bool [R, I], True where the block is one of its row's P lowest scores; ties: lower channel index first."""
    out = np.zeros(scores.shape, dtype=bool)
    count = candidate_count(rate, scores.shape[1])
    for r, row in enumerate(scores):
        for _, j in sorted(zip(row, range(len(row)), strict=True))[:count]:
            out[r, j] = True
    return out


def regrown_count(rate: float, pruned_rate: float, in_channels: int) -> int:
    """floor((p - p_t) * I) blocks of every row come back, at most the candidates there are."""
    return max(0, min(math.floor((rate - pruned_rate) * in_channels), candidate_count(rate, in_channels)))


def pruned_rate(rate: float, epoch: float, start: float, end: float, schedule: str) -> float:
    """p_t = p * r(x), x = clip((epoch - start) / (end - start), 0, 1); start == end is a step at start.

    Exactly 0 before start, exactly `rate` from end on. `exp` reaches 1 at i = span - 1 and is clipped there; for
    span <= 1 its formula divides by zero or turns negative, and its limit from above is taken: 0 at start, 1 after.
    """
    if end < start:
        raise ValueError(f"the schedule ends ({end}) before it starts ({start})")
    if epoch < start:
        return 0.0
    if epoch >= end:
        return rate
    i, span = epoch - start, end - start
    x = i / span
    if schedule == "cubic":
        return rate * x**3
    if schedule == "linear":
        return rate * x
    if schedule == "cos":
        return rate * (1 - math.cos(math.pi * x / 2))
    if schedule == "zhu_gupta":
        return rate * (1 - (1 - x) ** 3)
    if schedule == "exp":
        if span <= 1:
            return rate if i > 0 else 0.0
        return rate * min(1.0, (1 - math.exp(-0.05 * i)) / (1 - math.exp(-0.05 * (span - 1))))
    raise ValueError(f"unknown schedule {schedule!r}")


def regrow_probabilities(candidate_scores: np.ndarray, tau: float) -> np.ndarray:
    """softmax(normalise_L2(S_candidates) / tau) over one row's candidates, [P] -> [P]; all-zero scores: uniform."""
    s = np.asarray(candidate_scores, dtype=np.float64)
    if s.size == 0:
        return s
    norm = np.sqrt((s * s).sum())
    logits = (s / norm if norm > 0 else s) / tau
    e = np.exp(logits - logits.max())  # the shift cancels; without it a small tau overflows
    return e / e.sum()


def inclusion_frequencies(probabilities: np.ndarray, count: int) -> np.ndarray:
    """[P] -> [P]: exact chance of each candidate to be among `count` drawn one by one without replacement.

    Successive sampling: each draw takes candidate i with probability p_i over the sum of those not drawn yet. Every
    subset is visited (2^P), so P <= 15 or so. The frequencies sum to `count`.
    """
    p = [float(value) for value in probabilities]
    if count > sum(value > 0 for value in p):
        raise ValueError(f"cannot draw {count} of {sum(value > 0 for value in p)} candidates of non-zero probability")
    drawn = {frozenset(): 1.0}  # set drawn so far -> chance of it
    for _ in range(count):
        larger: dict[frozenset, float] = {}
        for subset, chance in drawn.items():
            left = [i for i in range(len(p)) if i not in subset and p[i] > 0]
            total = sum(p[i] for i in left)
            for i in left:
                larger[subset | {i}] = larger.get(subset | {i}, 0.0) + chance * p[i] / total
        drawn = larger
    return np.array([sum(chance for subset, chance in drawn.items() if i in subset) for i in range(len(p))])


def sr_ste(grad: np.ndarray, weight: np.ndarray, elementwise_mask: np.ndarray, decay: float) -> np.ndarray:
    """Gradient after SR-STE decay on the masked latent weights: grad + decay * (1 - m) * W, all [O, I, kh, kw]."""
    keep = np.asarray(elementwise_mask, dtype=np.float64)
    return np.asarray(grad, dtype=np.float64) + decay * (1 - keep) * np.asarray(weight, dtype=np.float64)


def expand_mask(mask: np.ndarray, weight_shape: tuple[int, ...], block_size: int, groups: int) -> np.ndarray:
    """Block mask [R, I] -> bool [O, I, kh, kw]; True is kept."""
    rows = block_rows(weight_shape[0], groups, block_size)
    assert np.shape(mask) == (len(rows), weight_shape[1]), (np.shape(mask), len(rows), weight_shape)
    out = np.zeros(weight_shape, dtype=bool)
    for r, (first, last) in enumerate(rows):
        for j in range(weight_shape[1]):
            out[first:last, j] = bool(mask[r][j])
    return out


def conv_macs(
    weight_shape: tuple[int, ...], out_hw: tuple[int, int], mask: np.ndarray | None, block_size: int, groups: int
) -> tuple[int, int]:
    """(dense, kept) multiply-accumulates of one convolution on one image; no bias. `mask` None keeps everything.

    Every weight is used once per output pixel (padding counts as work); a masked block saves all its n*kh*kw weights.
    """
    pixels = out_hw[0] * out_hw[1]
    dense = math.prod(weight_shape) * pixels
    if mask is None:
        return dense, dense
    return dense, int(expand_mask(mask, weight_shape, block_size, groups).sum()) * pixels
