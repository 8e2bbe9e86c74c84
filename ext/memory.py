"""Memory: aligned arrays, and one arena for everything a run computes, planned from when each part is in use."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Floats of a cache line: vector loads and stores that never cross one are faster.
LINE = 16


def aligned(size: int) -> np.ndarray:
    """`size` uninitialised floats that begin with a cache line."""
    array = np.empty(size + LINE, np.float32)
    start = -(array.ctypes.data // 4) % LINE
    return array[start : start + size]


def aligned_empty(shape: Sequence[int]) -> np.ndarray:
    """An uninitialised C-contiguous float32 array that begins with a cache line."""
    return aligned(math.prod(shape)).reshape(shape)


def odd_lines(size: int) -> int:
    """The next odd number of cache lines, in floats: a power of two would send all channels to the same cache sets."""
    return (-(-size // LINE) | 1) * LINE


class _Scratch(threading.local):
    buffer = np.empty(0, np.float32)


_scratch = _Scratch()


def scratch(size: int) -> np.ndarray:
    """At least `size` floats for the time of one call: one buffer per Python thread, as large as any has needed."""
    if _scratch.buffer.size < size:
        _scratch.buffer = aligned(size)
    return _scratch.buffer


@dataclass(eq=False)
class Buffer:
    """Memory that one or more values of a run live in.

    Attributes:
        nbytes: its size.
        first, last: the steps that write it first and touch it last.
        parent: another buffer that it is a part of, and where in it; None for memory of its own.
        offset: where in the arena, once `place` has run.
    """

    nbytes: int
    first: int
    last: int
    parent: tuple[Buffer, int] | None = None
    offset: int = 0

    def root(self) -> tuple[Buffer, int]:
        """Returns the buffer with memory of its own, and where in it this one begins."""
        buffer, start = self, 0
        while buffer.parent:
            buffer, offset = buffer.parent
            start += offset
        return buffer, start

    def alias(self, other: Buffer, start: int) -> None:
        """Makes this buffer a part of another one, which then lives as long as both."""
        self.parent = (other, start)
        root = other.root()[0]
        root.first, root.last = min(root.first, self.first), max(root.last, self.last)


def place(buffers: Sequence[Buffer]) -> int:
    """Gives every buffer its offset, so that no two overlap while both are in use; returns the bytes of the arena.

    The largest first, each at the lowest place that is free over all of its life.
    """
    roots = sorted((b for b in buffers if not b.parent), key=lambda b: (-b.nbytes, b.first))
    firsts, lasts, starts, ends = np.zeros((4, len(roots)), np.int64)
    total = 0
    for count, buffer in enumerate(roots):
        size = -(-max(buffer.nbytes, 1) // (4 * LINE)) * 4 * LINE
        rivals = np.flatnonzero((firsts[:count] <= buffer.last) & (lasts[:count] >= buffer.first))
        offset = 0
        for rival in rivals[np.argsort(starts[rivals], kind="stable")]:
            if starts[rival] >= offset + size:
                break
            offset = max(offset, int(ends[rival]))
        firsts[count], lasts[count], starts[count], ends[count] = buffer.first, buffer.last, offset, offset + size
        buffer.offset, total = offset, max(total, offset + size)
    for buffer in buffers:
        if buffer.parent:
            root, start = buffer.root()
            buffer.offset = root.offset + start
    return total
