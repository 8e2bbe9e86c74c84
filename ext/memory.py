"""Memory that runs reuse: a fresh array costs page faults and cold caches on every run."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np

# Floats of a cache line: vector loads and stores that never cross one are faster.
LINE = 16

# Bytes from which NumPy asks the system for huge pages, and from which blocks are worth rounding up to that.
HUGE, LARGE = 4 << 20, 1 << 19


class Arena:
    """Arrays of one thread whose memory returns here when the last view of them is gone."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def empty(self, shape: Sequence[int]) -> np.ndarray:
        """An uninitialised C-contiguous float32 array that begins with a cache line."""
        size = 4 * math.prod(shape)
        size = -(-size // HUGE) * HUGE if size >= LARGE else 1 << max(12, (size - 1).bit_length())
        free = self._free.setdefault(size, [])
        # The latest to return is the likeliest to be in a cache.
        storage = free.pop() if free else aligned(size // 4)
        return np.asarray(_Block(storage, free, tuple(shape)))


class _Block:
    """What the arrays of one allocation hold on to."""

    __slots__ = ("__array_interface__", "_free", "_storage")

    def __init__(self, storage: np.ndarray, free: list[np.ndarray], shape: tuple[int, ...]) -> None:
        self._storage, self._free = storage, free
        data = (storage.ctypes.data, False)
        self.__array_interface__ = {"data": data, "shape": shape, "typestr": storage.dtype.str, "version": 3}

    def __del__(self) -> None:
        self._free.append(self._storage)


def aligned(size: int) -> np.ndarray:
    """`size` uninitialised floats that begin with a cache line."""
    array = np.empty(size + LINE, np.float32)
    start = -(array.ctypes.data // 4) % LINE
    return array[start : start + size]


def aligned_empty(shape: Sequence[int]) -> np.ndarray:
    """As `Arena.empty`, for those without an arena."""
    return aligned(math.prod(shape)).reshape(shape)


class _Scratch(threading.local):
    buffer = np.empty(0, np.float32)


_scratch = _Scratch()


def scratch(size: int) -> np.ndarray:
    """At least `size` floats for the time of one call: one buffer per Python thread, as large as any has needed."""
    if _scratch.buffer.size < size:
        _scratch.buffer = aligned(size)
    return _scratch.buffer
