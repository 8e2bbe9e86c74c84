"""The share of blocks that is pruned as a function of time; stateless, so that a resume needs the epoch alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# r(x): progress of pruning at progress x of the schedule; `span` is its length in epochs.
SHAPES: dict[str, Callable[[float, float], float]] = {
    "cubic": lambda x, span: x**3,
    "linear": lambda x, span: x,
    "cos": lambda x, span: 1 - math.cos(math.pi * x / 2),
    "exp": lambda x, span: _saturating(x, span),
    "zhu_gupta": lambda x, span: 1 - (1 - x) ** 3,
}

# As shares of the run. The published runs of 250 epochs prune from epoch 10 to 180; in launch/study, where runs are
# short, networks that have longer at the target rate learn more, by far more than the spread between seeds.
DEFAULT_START, DEFAULT_END = 0.04, 0.25


def _saturating(x: float, span: float) -> float:
    """``(1 - e^(-0.05 i)) / (1 - e^(-0.05 (span - 1)))`` at i = x * span: complete one epoch before the end."""
    if x * span >= span - 1:
        return 1.0
    return math.expm1(-0.05 * x * span) / math.expm1(-0.05 * (span - 1))


@dataclass(frozen=True)
class PruneSchedule:
    """Pruned rate over time, from 0 at epoch ``start`` to ``rate`` at epoch ``end``.

    Attributes:
        rate: target share of pruned blocks, in [0, 1).
        start: epoch at which pruning starts.
        end: epoch from which on the rate is exactly ``rate``; equal to ``start`` for a single step.
        shape: a key of ``SHAPES``.

    Raises:
        ValueError: a value is out of its range.
    """

    rate: float
    start: float
    end: float
    shape: str = "cubic"

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"prune rate {self.rate}: expected a share of blocks in [0, 1), such as 0.5")
        if not 0 <= self.start <= self.end:
            raise ValueError(f"pruning from epoch {self.start} to {self.end}: expected 0 <= start <= end")
        if self.shape not in SHAPES:
            raise ValueError(f"prune schedule {self.shape!r}: expected one of {', '.join(SHAPES)}")

    @classmethod
    def for_run(
        cls, rate: float, epochs: int, start: float | None = None, end: float | None = None, shape: str = "cubic"
    ) -> PruneSchedule:
        """A schedule for a run of ``epochs``: the default shares of the run where start or end is None.

        Raises:
            ValueError: the target would not be reached within the run.
        """
        last = epochs - 1
        if end is None:
            end = min(round(DEFAULT_END * epochs), last)
            if start is not None:
                end = max(end, min(start, last))
        if start is None:
            start = min(round(DEFAULT_START * epochs), end)
        if end > last:
            raise ValueError(
                f"the pruning schedule ends at epoch {end:g}, but the run's last epoch is {last} ({epochs} epochs, "
                f"counted from 0): the target rate would never be reached; set --prune-end to at most {last}, "
                f"or --epochs to at least {math.ceil(end) + 1}"
            )
        return cls(rate, start, end, shape)

    def pruned_rate(self, epoch: float) -> float:
        """Share of blocks to be pruned at a time in epochs: 0 before the start, exactly ``rate`` from the end on."""
        if epoch >= self.end:
            return self.rate
        if epoch <= self.start:
            return 0.0
        span = self.end - self.start
        return self.rate * SHAPES[self.shape]((epoch - self.start) / span, span)
