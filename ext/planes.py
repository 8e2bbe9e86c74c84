"""Pooling and element-wise operators on the compiled kernels.

Each function takes the arguments of its operator by name, an arena for the result and a thread count, and returns
None for what the kernels do not cover (other dtypes, memory orders and broadcasts): the reference then runs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from subp_ext import runtime
from subp_ext.memory import Arena
from subp_ext.reference.pooling import pool_geometry


def _plain(x: Any, ndim: int | None = None) -> bool:
    """Whether the kernels can read it: a C-contiguous, non-empty float32 array."""
    is_array = isinstance(x, np.ndarray) and x.dtype == np.float32 and x.flags.c_contiguous and x.size > 0
    return is_array and ndim in (None, x.ndim)


def _pool(x: np.ndarray, geometry: Any, average: bool, arena: Arena, threads: int) -> np.ndarray:
    out = arena.empty((*x.shape[:2], *geometry.out))
    runtime.kernels().pool(
        runtime.kernel_set(),
        x.reshape(-1, *x.shape[2:]),
        geometry.kernel,
        geometry.stride,
        geometry.dilation,
        geometry.padding,
        geometry.counts if average else None,
        out.reshape(-1, *geometry.out),
        threads,
    )
    return out


def max_pool2d(arena: Arena, threads: int, *, self: Any, **window: Any) -> np.ndarray | None:
    if not _plain(self, 4):
        return None
    return _pool(self, pool_geometry(self.shape[2:], **window), False, arena, threads)


def avg_pool2d(
    arena: Arena, threads: int, *, self: Any, divisor_override: Any = None, **window: Any
) -> np.ndarray | None:
    if not _plain(self, 4) or divisor_override is not None:
        return None
    return _pool(self, pool_geometry(self.shape[2:], **window), True, arena, threads)


def mean(arena: Arena, threads: int, *, self: Any, dim: Any, keepdim: bool = False) -> np.ndarray | None:
    """The mean of every plane: over the last two of four dimensions."""
    if not _plain(self, 4) or not isinstance(dim, (list, tuple)) or {int(d) % 4 for d in dim} != {2, 3}:
        return None
    out = arena.empty((*self.shape[:2], 1, 1) if keepdim else self.shape[:2])
    runtime.kernels().mean(
        runtime.kernel_set(), self.reshape(-1, self.shape[2] * self.shape[3]), out.reshape(-1), threads
    )
    return out


def adaptive_avg_pool2d(arena: Arena, threads: int, *, self: Any, output_size: Any) -> np.ndarray | None:
    sizes = output_size if isinstance(output_size, (list, tuple)) else [output_size]
    return mean(arena, threads, self=self, dim=(2, 3), keepdim=True) if set(sizes) == {1} else None


def _binary(a: Any, b: Any, multiply: bool, arena: Arena, threads: int) -> np.ndarray | None:
    """Operands of one shape, or one with a number per plane, as a squeeze-and-excitation gate has."""
    if not (_plain(a) and _plain(b)) or a.ndim == 0:
        return None
    if a.size < b.size:
        a, b = b, a
    if a.shape == b.shape:
        runs = 1
    elif a.ndim == b.ndim == 4 and b.shape == (*a.shape[:2], 1, 1):
        runs = b.size
    else:
        return None
    out = arena.empty(a.shape)
    views = [array.reshape(runs, -1) for array in (a, b, out)]
    runtime.kernels().binary(runtime.kernel_set(), multiply, *views[:2], None, views[2], threads)
    return out


def add(arena: Arena, threads: int, *, self: Any, other: Any, alpha: float = 1) -> np.ndarray | None:
    return _binary(self, other, False, arena, threads) if alpha == 1 else None


def mul(arena: Arena, threads: int, *, self: Any, other: Any) -> np.ndarray | None:
    return _binary(self, other, True, arena, threads)


def activate(name: str, arena: Arena, threads: int, *, self: Any) -> np.ndarray | None:
    if not _plain(self):
        return None
    out = arena.empty(self.shape)
    runtime.kernels().activate(runtime.kernel_set(), self.reshape(-1), name, out.reshape(-1), threads)
    return out
