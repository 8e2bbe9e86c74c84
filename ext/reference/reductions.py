"""Reductions over dimensions; None or [] means all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from subp_ext.reference.registry import axes, cast, register


@register("mean")
def mean(self: np.ndarray, dim: Any = None, keepdim: bool = False, dtype: str | None = None) -> np.ndarray:
    x = cast(self, dtype)
    return np.asarray(x.mean(axis=axes(dim, x.ndim), keepdims=keepdim), x.dtype)


@register("sum")
def sum(self: np.ndarray, dim: Any = None, keepdim: bool = False, dtype: str | None = None) -> np.ndarray:
    natural = "int64" if self.dtype.kind in "iub" else None  # as torch: whole numbers add up in int64
    return np.asarray(cast(self, dtype or natural).sum(axis=axes(dim, self.ndim), keepdims=keepdim))


@register("prod")
def prod(self: np.ndarray, dim: Any = None, keepdim: bool = False, dtype: str | None = None) -> np.ndarray:
    return np.asarray(cast(self, dtype).prod(axis=axes(dim, self.ndim), keepdims=keepdim))


@register("amax")
def amax(self: np.ndarray, dim: Any = (), keepdim: bool = False) -> np.ndarray:
    return np.asarray(self.max(axis=axes(dim, self.ndim), keepdims=keepdim))


@register("amin")
def amin(self: np.ndarray, dim: Any = (), keepdim: bool = False) -> np.ndarray:
    return np.asarray(self.min(axis=axes(dim, self.ndim), keepdims=keepdim))


def _extreme(x: np.ndarray, dim: int | None, keepdim: bool, name: str) -> Any:
    if dim is None:
        return np.asarray(getattr(np, name)(x))
    values = getattr(np, name)(x, axis=dim, keepdims=keepdim)
    return values, np.asarray(getattr(np, f"arg{name}")(x, axis=dim, keepdims=keepdim))


@register("max")
def max(self: np.ndarray, dim: int | None = None, keepdim: bool = False) -> Any:
    """With `dim` returns (values, indices), without it the value."""
    return _extreme(self, dim, keepdim, "max")


@register("min")
def min(self: np.ndarray, dim: int | None = None, keepdim: bool = False) -> Any:
    """With `dim` returns (values, indices), without it the value."""
    return _extreme(self, dim, keepdim, "min")


@register("argmax")
def argmax(self: np.ndarray, dim: int | None = None, keepdim: bool = False) -> np.ndarray:
    return np.asarray(self.argmax(axis=dim, keepdims=keepdim))


def _correction(correction: float | None, unbiased: bool) -> float:
    return float(unbiased) if correction is None else correction


@register("var")
def var(
    self: np.ndarray,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: float | None = None,
) -> np.ndarray:
    """Variance; the divisor is the count less `correction` (1 by default, 0 if not `unbiased`)."""
    ddof = _correction(correction, unbiased)
    wide = self.var(axis=axes(dim, self.ndim), ddof=ddof, keepdims=keepdim, dtype=np.float64)
    return np.asarray(wide, self.dtype)


@register("std")
def std(
    self: np.ndarray,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: float | None = None,
) -> np.ndarray:
    return np.sqrt(var(self, dim, unbiased, keepdim, correction))


@register("var_mean")
def var_mean(
    self: np.ndarray,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    return var(self, dim, unbiased, keepdim, correction), mean(self, dim, keepdim)


@register("linalg_vector_norm")
def linalg_vector_norm(
    self: np.ndarray, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: str | None = None
) -> np.ndarray:
    x = np.abs(cast(self, dtype).astype(np.float64))
    over: dict[str, Any] = {"axis": axes(dim, self.ndim), "keepdims": keepdim}
    if ord == 0:
        result = (x != 0).sum(**over)
    elif np.isinf(ord):
        result = x.max(**over) if ord > 0 else x.min(**over)
    else:
        result = (x**ord).sum(**over) ** (1.0 / ord)
    return np.asarray(result, dtype or self.dtype)


@register("cumsum")
def cumsum(self: np.ndarray, dim: int, dtype: str | None = None) -> np.ndarray:
    natural = "int64" if self.dtype.kind in "iub" else None
    return cast(self, dtype or natural).cumsum(axis=dim)
