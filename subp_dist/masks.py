"""One uniform mask update: prune the lowest blocks of every row, let some of them grow back by chance.

Pure functions of scores ``[R, I]``; masks are ``[R, I]`` bool, True where a block is kept. Everything runs where the
scores lie, and the host waits for nothing. Random numbers alone are drawn on the CPU, so that the same generator draws
the same mask whatever device a rank trains on. Source: arXiv 2310.06218, section 3.
"""

from __future__ import annotations

import hashlib
import math
import struct

import torch
from torch import Tensor


def num_candidates(rate: float, in_channels: int) -> int:
    """Blocks that each row gives up at a pruning rate: rounded down, and one block always stays."""
    return min(math.floor(rate * in_channels), in_channels - 1)


def num_regrown(rate: float, pruned_rate: float, in_channels: int) -> int:
    """How many of the candidates of a row come back while only ``pruned_rate`` of the target ``rate`` is due."""
    return min(math.floor((rate - pruned_rate) * in_channels), num_candidates(rate, in_channels))


def lowest_blocks(scores: Tensor, count: int) -> Tensor:
    """Channels of the ``count`` lowest scores of each row, ``[R, count]``; ties go to the lower channel."""
    return scores.argsort(dim=1, stable=True)[:, :count]


def draw_without_replacement(scores: Tensor, count: int, tau: float, generator: torch.Generator) -> Tensor:
    """Draw ``count`` entries of each row with probability ``softmax(scores / |scores|_2 / tau)``: ``[R, count]``.

    The ``count`` largest of (logit + Gumbel noise) are distributed as draws one after the other without replacement,
    and unlike a multinomial that stays true where a small ``tau`` makes probabilities underflow.
    """
    norms = torch.linalg.vector_norm(scores, dim=1, keepdim=True)
    logits = torch.where(norms > 0, scores / norms, 0.0) / tau
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64, device="cpu")
    noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
    return (logits + noise.to(scores.device, non_blocking=True)).topk(count, dim=1).indices


# Which blocks compete. In "layer" rows keep different counts, as in earlier 1xN pruning: to compare with, not to run.
PATTERNS = ("uniform", "layer")


def uniform_mask(scores: Tensor, rate: float, pruned_rate: float, tau: float, generator: torch.Generator) -> Tensor:
    """The next mask of a layer.

    Args:
        scores: ``[R, I]`` block scores.
        rate: target share of pruned blocks, in [0, 1).
        pruned_rate: share that the schedule asks for now, in [0, rate].
        tau: temperature of the regrowth; small values prefer high scores, large ones are uniform.
        generator: CPU generator, equal on every rank.

    Returns:
        ``[R, I]`` bool with the same number of True in every row, on the device of the scores.
    """
    scores = scores.detach().to(torch.float64)
    candidates = lowest_blocks(scores, num_candidates(rate, scores.shape[1]))
    mask = torch.ones(scores.shape, dtype=torch.bool, device=scores.device).scatter_(1, candidates, False)
    regrown = num_regrown(rate, pruned_rate, scores.shape[1])
    if regrown > 0:
        drawn = draw_without_replacement(scores.gather(1, candidates), regrown, tau, generator)
        mask.scatter_(1, candidates.gather(1, drawn), True)
    return mask


def competing(blocks: Tensor, pattern: str) -> Tensor:
    """Scores or mask ``[R, I]`` with one row for each set of blocks that compete: as it is, or ``[1, R * I]``."""
    return blocks if pattern == "uniform" else blocks.reshape(1, -1)


def at_rate(mask: Tensor, rate: float, pattern: str) -> bool:
    """Whether every row of a mask ``[R, I]`` keeps just the blocks that a pruning rate leaves."""
    rows = competing(mask, pattern)
    return bool((rows.sum(1) == rows.shape[1] - num_candidates(rate, rows.shape[1])).all())


def draw_generator(seed: int, epoch: float, layer: str) -> torch.Generator:
    """The generator of one layer's draw at one time: the same on every rank, and after a resume."""
    digest = hashlib.blake2b(struct.pack("<qd", seed, epoch) + layer.encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
