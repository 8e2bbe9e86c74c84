"""Tensors from sizes and numbers. A dtype is a name; None is float32, or int64 for whole ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from subp_ext.dtypes import Array
from subp_ext.operators.arguments import Number, sizes
from subp_ext.operators.record import ELEMENTWISE, MetaTensor, Spec, operator


def _natural(fill_value: Any) -> str:
    return {bool: "bool", int: "int64"}.get(type(fill_value), "float32")


def _full_spec(size: Any, fill_value: Any, dtype: str | None = None) -> Spec:
    return sizes(size), np.dtype(dtype or _natural(fill_value))


def _filled_spec(size: Any, dtype: str | None = None) -> Spec:
    return sizes(size), np.dtype(dtype or "float32")


def _new_spec(self: MetaTensor, size: Any, fill_value: Any = None, dtype: str | None = None) -> Spec:
    return sizes(size), np.dtype(dtype or self.dtype)


@operator("full", shape=_full_spec)
def full(size: Sequence[int], fill_value: Number, dtype: str | None = None) -> Array:
    return np.full(size, fill_value, dtype or _natural(fill_value))


@operator("zeros", shape=_filled_spec)
def zeros(size: Sequence[int], dtype: str | None = None) -> Array:
    return np.zeros(size, dtype or "float32")


@operator("ones", shape=_filled_spec)
def ones(size: Sequence[int], dtype: str | None = None) -> Array:
    return np.ones(size, dtype or "float32")


@operator("full_like", shape=ELEMENTWISE)
def full_like(self: Array, fill_value: Number, dtype: str | None = None) -> Array:
    return np.full_like(self, fill_value, dtype)


@operator("zeros_like", shape=ELEMENTWISE)
def zeros_like(self: Array, dtype: str | None = None) -> Array:
    return np.zeros_like(self, dtype)


@operator("ones_like", shape=ELEMENTWISE)
def ones_like(self: Array, dtype: str | None = None) -> Array:
    return np.ones_like(self, dtype)


@operator("new_full", shape=_new_spec)
def new_full(self: Array, size: Sequence[int], fill_value: Number, dtype: str | None = None) -> Array:
    return np.full(size, fill_value, dtype or self.dtype)


@operator("new_zeros", shape=_new_spec)
def new_zeros(self: Array, size: Sequence[int], dtype: str | None = None) -> Array:
    return np.zeros(size, dtype or self.dtype)


@operator("new_ones", shape=_new_spec)
def new_ones(self: Array, size: Sequence[int], dtype: str | None = None) -> Array:
    return np.ones(size, dtype or self.dtype)


def _scalar_spec(s: Any, dtype: str | None = None) -> Spec:
    return (), np.dtype(dtype or "float32")


@operator("scalar_tensor", shape=_scalar_spec)
def scalar_tensor(s: Number, dtype: str | None = None) -> Array:
    return np.asarray(s, dtype or "float32")


def _whole(*values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


def _arange_spec(end: Any, start: Any = 0, step: Any = 1, dtype: str | None = None) -> Spec:
    natural = "int64" if _whole(start, end, step) else "float32"
    return (max(0, math.ceil((end - start) / step)),), np.dtype(dtype or natural)


@operator("arange", shape=_arange_spec)
def arange(end: Number, start: Number = 0, step: Number = 1, dtype: str | None = None) -> Array:
    # In float64 first, as torch does; float32 steps would drift.
    natural = "int64" if _whole(start, end, step) else "float32"
    return np.arange(start, end, step).astype(dtype or natural)


def _linspace_spec(start: float, end: float, steps: int, dtype: str | None = None) -> Spec:
    return (max(0, steps),), np.dtype(dtype or "float32")


@operator("linspace", shape=_linspace_spec)
def linspace(start: float, end: float, steps: int, dtype: str | None = None) -> Array:
    return np.linspace(start, end, steps).astype(dtype or "float32")


def _eye_spec(n: int, m: int | None = None, dtype: str | None = None) -> Spec:
    return sizes([n, n if m is None else m]), np.dtype(dtype or "float32")


@operator("eye", shape=_eye_spec)
def eye(n: int, m: int | None = None, dtype: str | None = None) -> Array:
    return np.eye(n, m, dtype=dtype or "float32")
