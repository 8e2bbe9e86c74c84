"""Reductions over dimensions; None or [] means all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from subp_ext.dtypes import Array, ValueType
from subp_ext.operators.arguments import Ints, astype, axes
from subp_ext.operators.conversions import UINT8, is_quantized, quantization_of
from subp_ext.operators.record import DRY_RUN, Lowered, Unsupported, operator
from subp_ext.operators.steps import bound, no_kernel, plan_kernel, viewed
from subp_ext.requantize import Rescale, of_average
from subp_ext.tensor import At, Call, Tensor

if TYPE_CHECKING:
    from subp_ext.planner import Planner


def lower_mean(
    planner: Planner,
    op: str,
    *,
    self: Any,
    dim: Any = None,
    keepdim: bool = False,
    dtype: str | None = None,
    out_type: ValueType | None = None,
) -> Lowered | Unsupported:
    """The mean of every plane: over the last two of four dimensions."""
    integers = quantization_of(self) is not None and is_quantized(out_type, UINT8)
    kernel = "quantized_mean" if integers else "mean"
    if refused := no_kernel(kernel, self, 4):
        return refused
    if dtype is not None:
        return Unsupported("the kernel keeps the dtype")
    if not isinstance(dim, (list, tuple)) or {int(d) % 4 for d in dim} != {2, 3}:
        return Unsupported("the kernel averages over the last two dimensions")
    rescale = _rescale(self, out_type) if integers else None
    if isinstance(rescale, str):
        return Unsupported(rescale)
    x, parameters = planner.contiguous(self), [] if rescale is None else [rescale]
    out = planner.empty((*x.view.shape[:2], 1, 1), out_type if integers else x.type)
    threads, types = planner.threads, [] if integers else [x.type.dtype.name]

    def bind(at: At) -> Call:
        source, target = at(x), at(out)
        return bound(
            f"bind_{kernel}", source.reshape(target.size, -1), *parameters, target.reshape(-1), threads, *types
        )

    plan_kernel(planner, op, kernel, bind, [x], out)
    return Lowered(out if keepdim else viewed(planner, out, lambda v: v[..., 0, 0]))


def _rescale(x: Tensor, out_type: ValueType | None) -> Rescale | str:
    """The constants of the mean of quantized planes, or why integers will not do."""
    assert x.type.quantization is not None and out_type is not None and out_type.quantization is not None
    pixels = math.prod(x.view.shape[2:])
    factors = of_average(x.type.quantization, out_type.quantization, np.array([pixels]), pixels)
    if isinstance(factors, str):
        return factors
    return Rescale(int(x.type.quantization.zero_point), float(factors[0]), int(out_type.quantization.zero_point))


@operator("mean", shape=DRY_RUN, lower=lower_mean)
def mean(self: Array, dim: Ints | None = None, keepdim: bool = False, dtype: str | None = None) -> Array:
    x = astype(self, dtype)
    return np.asarray(x.mean(axis=axes(dim, x.ndim), keepdims=keepdim), x.dtype)


@operator("sum", shape=DRY_RUN)
def sum(self: Array, dim: Ints | None = None, keepdim: bool = False, dtype: str | None = None) -> Array:
    natural = "int64" if self.dtype.kind in "iub" else None  # as torch: whole numbers add up in int64
    return np.asarray(astype(self, dtype or natural).sum(axis=axes(dim, self.ndim), keepdims=keepdim))


@operator("prod", shape=DRY_RUN)
def prod(self: Array, dim: Ints | None = None, keepdim: bool = False, dtype: str | None = None) -> Array:
    return np.asarray(astype(self, dtype).prod(axis=axes(dim, self.ndim), keepdims=keepdim))


@operator("amax", shape=DRY_RUN)
def amax(self: Array, dim: Ints | None = (), keepdim: bool = False) -> Array:
    return np.asarray(self.max(axis=axes(dim, self.ndim), keepdims=keepdim))


@operator("amin", shape=DRY_RUN)
def amin(self: Array, dim: Ints | None = (), keepdim: bool = False) -> Array:
    return np.asarray(self.min(axis=axes(dim, self.ndim), keepdims=keepdim))


def _extreme(x: Array, dim: int | None, keepdim: bool, name: str) -> Any:
    if dim is None:
        return np.asarray(getattr(np, name)(x))
    values = getattr(np, name)(x, axis=dim, keepdims=keepdim)
    return values, np.asarray(getattr(np, f"arg{name}")(x, axis=dim, keepdims=keepdim))


@operator("max", shape=DRY_RUN)
def max(self: Array, dim: int | None = None, keepdim: bool = False) -> Any:
    """With `dim` returns (values, indices), without it the value."""
    return _extreme(self, dim, keepdim, "max")


@operator("min", shape=DRY_RUN)
def min(self: Array, dim: int | None = None, keepdim: bool = False) -> Any:
    """With `dim` returns (values, indices), without it the value."""
    return _extreme(self, dim, keepdim, "min")


@operator("argmax", shape=DRY_RUN)
def argmax(self: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    return np.asarray(np.argmax(self, axis=dim, keepdims=keepdim))


def _correction(correction: float | None, unbiased: bool) -> float:
    return float(unbiased) if correction is None else correction


@operator("var", shape=DRY_RUN)
def var(
    self: Array,
    dim: Ints | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: float | None = None,
) -> Array:
    """Variance; the divisor is the count less `correction` (1 by default, 0 if not `unbiased`)."""
    ddof = _correction(correction, unbiased)
    wide = self.var(axis=axes(dim, self.ndim), ddof=ddof, keepdims=keepdim, dtype=np.float64)
    return np.asarray(wide, self.dtype)


@operator("std", shape=DRY_RUN)
def std(
    self: Array,
    dim: Ints | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: float | None = None,
) -> Array:
    return np.sqrt(var(self, dim, unbiased, keepdim, correction))


@operator("var_mean", shape=DRY_RUN)
def var_mean(
    self: Array,
    dim: Ints | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
    correction: float | None = None,
) -> tuple[Array, Array]:
    return var(self, dim, unbiased, keepdim, correction), mean(self, dim, keepdim)


@operator("linalg_vector_norm", shape=DRY_RUN)
def linalg_vector_norm(
    self: Array, ord: float = 2, dim: Ints | None = None, keepdim: bool = False, dtype: str | None = None
) -> Array:
    x = np.abs(astype(self, dtype).astype(np.float64))
    over: dict[str, Any] = {"axis": axes(dim, self.ndim), "keepdims": keepdim}
    if ord == 0:
        result = (x != 0).sum(**over)
    elif np.isinf(ord):
        result = x.max(**over) if ord > 0 else x.min(**over)
    else:
        result = (x**ord).sum(**over) ** (1.0 / ord)
    return np.asarray(result, dtype or self.dtype)


@operator("cumsum", shape=DRY_RUN)
def cumsum(self: Array, dim: int, dtype: str | None = None) -> Array:
    natural = "int64" if self.dtype.kind in "iub" else None
    return astype(self, dtype or natural).cumsum(axis=dim)
