"""Progressive resolution: the size of training images by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class Resolutions:
    """Steps of (first epoch, pixels of a side), in order, the first at epoch 0."""

    steps: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, texts: Sequence[str], default: int, epochs: int) -> Resolutions:
        """From ``EPOCH:PIXELS``, as in ``0:160 30:192 60:224``; without any, one size for all epochs.

        Raises:
            UsageError: not such a list, or a step lies beyond the run.
        """
        steps = []
        for text in texts:
            epoch, colon, pixels = str(text).partition(":")
            if not (colon and epoch.isdecimal() and pixels.isdecimal() and int(pixels) > 0):
                raise UsageError(f"--res-schedule {text!r}: expected EPOCH:PIXELS, as in 0:160 30:192 60:224")
            steps.append((int(epoch), int(pixels)))
        if not steps:
            return cls(((0, default),))
        starts = [epoch for epoch, _ in steps]
        if starts[0] != 0 or starts != sorted(set(starts)) or starts[-1] >= epochs:
            raise UsageError(
                f"--res-schedule {' '.join(map(str, texts))}: expected rising epochs, from 0 to less than {epochs}"
            )
        return cls(tuple(steps))

    def at(self, epoch: int) -> int:
        """Pixels of a side in an epoch."""
        return next(pixels for start, pixels in reversed(self.steps) if start <= epoch)
