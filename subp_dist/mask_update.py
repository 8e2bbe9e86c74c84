"""What an update of the masks did, from the masks before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

_UNDERWAY = 0.4  # of the blocks that will be pruned: between start and target of a linear course as of a cubic one


@dataclass(frozen=True)
class MaskUpdate:
    """What one ``SUBPPruner.step`` did.

    Attributes:
        target: share of blocks that the schedule asks to be pruned now, in layers without a rate of their own.
        actual: share of blocks of the pruned layers that is pruned now.
        flip_rate: share of blocks whose mask bit changed.
        regrown: blocks that were pruned before and are kept now.
        milestone: ``first`` where a model without pruned blocks gets some, ``underway`` where two fifths of the blocks
            are pruned that will be, ``target`` where all layers come to their target rates, else None.
        scores: block scores ``[R, I]`` per layer, as they were before the update.
    """

    target: float
    actual: float
    flip_rate: float
    regrown: int
    milestone: str | None
    scores: dict[str, Tensor]

    @classmethod
    def between(
        cls,
        old: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        *,
        target: float,
        final_rates: Mapping[str, float],
        reached: bool,
        scores: dict[str, Tensor],
    ) -> MaskUpdate:
        """Compare the masks ``[R, I]`` of each layer, on the CPU.

        Args:
            old, new: the masks before and after.
            target: share of blocks that the schedule asks to be pruned now.
            final_rates: share of each layer's blocks that will be pruned in the end.
            reached: this update brought all layers to their target rates.
            scores: what it was decided on.
        """
        flipped = sum(int((new[name] != old[name]).sum()) for name in new)
        regrown = sum(int((new[name] & ~old[name]).sum()) for name in new)
        before, actual, blocks = pruned_share(old), pruned_share(new), _blocks(new)
        final = sum(mask.numel() * final_rates[name] for name, mask in new.items()) / blocks
        milestone = "first" if before == 0 and flipped else None
        if reached:
            milestone = "target"
        elif milestone is None and before < _UNDERWAY * final <= actual:
            milestone = "underway"
        return cls(target, actual, flipped / blocks, regrown, milestone, scores)


def pruned_share(masks: Mapping[str, Tensor]) -> float:
    """Share of the blocks of all masks, on the CPU, that is pruned."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / _blocks(masks)


def _blocks(masks: Mapping[str, Tensor]) -> int:
    return sum(mask.numel() for mask in masks.values())
