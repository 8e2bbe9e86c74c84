"""Tensors from sizes and numbers. A dtype is a name of `graph.DTYPES`; None is float32, or int64 for whole ranges."""

from __future__ import annotations

from typing import Any

import numpy as np

from subp_ext.reference.registry import register


@register("full")
def full(size: list[int], fill_value: Any, dtype: str | None = None) -> np.ndarray:
    natural = {bool: "bool", int: "int64"}.get(type(fill_value), "float32")
    return np.full(size, fill_value, dtype or natural)


@register("zeros")
def zeros(size: list[int], dtype: str | None = None) -> np.ndarray:
    return np.zeros(size, dtype or "float32")


@register("ones")
def ones(size: list[int], dtype: str | None = None) -> np.ndarray:
    return np.ones(size, dtype or "float32")


@register("full_like")
def full_like(self: np.ndarray, fill_value: Any, dtype: str | None = None) -> np.ndarray:
    return np.full_like(self, fill_value, dtype)


@register("zeros_like")
def zeros_like(self: np.ndarray, dtype: str | None = None) -> np.ndarray:
    return np.zeros_like(self, dtype)


@register("ones_like")
def ones_like(self: np.ndarray, dtype: str | None = None) -> np.ndarray:
    return np.ones_like(self, dtype)


@register("new_full")
def new_full(self: np.ndarray, size: list[int], fill_value: Any, dtype: str | None = None) -> np.ndarray:
    return np.full(size, fill_value, dtype or self.dtype)


@register("new_zeros")
def new_zeros(self: np.ndarray, size: list[int], dtype: str | None = None) -> np.ndarray:
    return np.zeros(size, dtype or self.dtype)


@register("new_ones")
def new_ones(self: np.ndarray, size: list[int], dtype: str | None = None) -> np.ndarray:
    return np.ones(size, dtype or self.dtype)


@register("scalar_tensor")
def scalar_tensor(s: Any, dtype: str | None = None) -> np.ndarray:
    return np.asarray(s, dtype or "float32")


@register("arange")
def arange(end: Any, start: Any = 0, step: Any = 1, dtype: str | None = None) -> np.ndarray:
    whole = all(isinstance(value, int) for value in (start, end, step))
    # In float64 first, as torch does; float32 steps would drift.
    return np.arange(start, end, step).astype(dtype or ("int64" if whole else "float32"))


@register("linspace")
def linspace(start: float, end: float, steps: int, dtype: str | None = None) -> np.ndarray:
    return np.linspace(start, end, steps).astype(dtype or "float32")


@register("eye")
def eye(n: int, m: int | None = None, dtype: str | None = None) -> np.ndarray:
    return np.eye(n, m, dtype=dtype or "float32")
